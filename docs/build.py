"""Builds the documentation site: the book (nbs), the reports (outputs) and the pages beside this file, through nbdev's processors and Sphinx.

    python docs/build.py [--no-run] [--only NAME ...] [--out _docs]

Notebooks are committed without outputs, so they are run here; a notebook is run again only if it or the package changed."""
import argparse, hashlib, json, os, re, shutil, subprocess, sys, warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat, yaml
from execnb.nbio import dict2nb
from nbclient import NotebookClient
from nbdev.processors import FilterDefaults

from kdnb._modidx import d as modidx
from kdnb.reporting.gallery import results, verdicts
from kdnb.reporting.jobs import about
from kdnb.core.display import escape_markdown as md
from kdnb.core.errors import KdnbError
from kdnb.core.process import module_command, safe_environment
from kdnb.reporting.pages import safe_outputs
from kdnb.reporting.runner import KERNEL_OPTIONS, OwnKernel

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parent.parent
CODE = sorted((ROOT/'kdnb').rglob('*.py')) + sorted((ROOT/'kdnb'/'assets').glob('*'))


class Pages(FilterDefaults):
    "nbdev's processors; what is exported stays on the page, folded, since it is what the text explains."
    def base_procs(self): return [p for p in super().base_procs() if p.__name__ not in ('rm_export', 'add_fold', 'insert_warning')]


def book(): return sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))

def anchor(name): return re.sub(r'[^\w\- ]', '', name.lower()).replace(' ', '-') # as MyST makes them of headings

def module_pages():
    "Module -> notebook of the book."
    return {m[1]: p.name for p in book() if (m := re.search(r'#\|\s*default_exp (\w+)', p.read_text(encoding='utf-8')))}


# --- running -------------------------------------------------------------------------------------

def run(path):
    "A notebook with its outputs, from the cache where neither it nor the package changed."
    code = hashlib.sha256(b''.join(f.read_bytes() for f in CODE)).hexdigest()
    kept = ROOT/'_proc'/'run'/f'{path.stem}-{hashlib.sha256(path.read_bytes() + code.encode()).hexdigest()[:16]}.ipynb'
    if kept.exists(): return nbformat.read(kept, 4)
    nb = nbformat.read(path, 4)
    skipped = [c for c in nb.cells if c.cell_type == 'code' and re.search(r'^#\|\s*(eval:\s*false|slow)', c.source, re.M)]
    for c in skipped: c.cell_type = 'raw' # not run in tests either
    with TemporaryDirectory() as profile:
        options = [*KERNEL_OPTIONS, f'--ipython-dir={profile}']
        NotebookClient(nb, timeout=600, kernel_name='python3', kernel_manager_class=OwnKernel, extra_arguments=options,
                       resources={'metadata': {'path': str(path.parent)}}).execute()
    for c in skipped: c.cell_type = 'code'; c.outputs = []; c.execution_count = None
    kept.parent.mkdir(parents=True, exist_ok=True)
    for old in kept.parent.glob(f'{path.stem}-*.ipynb'): old.unlink()
    nbformat.write(nb, kept)
    return nb


# --- cleaning ------------------------------------------------------------------------------------

def local(text, pages):
    "Links that nbdev made to a site, as links to pages of this one; links to other notebooks likewise."
    text = re.sub(r'https?://[^\s)"]+?/(\w+)\.html#([\w.]+)', lambda m: f'{pages[m[1]]}#{anchor(m[2])}' if m[1] in pages else m[0], text)
    return re.sub(r'\[source\]\([^)]*\)(\{[^}]*\})?\n*', '', text)

def empty(): return nbformat.v4.new_notebook(metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3'}, 'language_info': {'name': 'python', 'pygments_lexer': 'ipython3'}})

def tag(cell, *tags): cell.metadata['tags'] = sorted({*cell.metadata.get('tags', []), *tags})

def clean_outputs(cell, alt, pages):
    "Drops progress bars and what was written to stderr, and what could run or load; gives pictures their text; makes links local."
    kept = []
    for o in cell.get('outputs', []):
        if o.output_type == 'stream' and o.name == 'stderr' or 'application/vnd.jupyter.widget-view+json' in o.get('data', {}): continue
        for k in ('text/markdown', 'text/html'):
            if k in o.get('data', {}): o.data[k] = local(''.join(o.data[k]), pages)
        kept.append(o)
    cell.outputs = kept = safe_outputs(kept, markdown=False)
    if any('image/png' in o.get('data', {}) for o in kept): cell.metadata['mystnb'] = {'image': {'alt': alt}}

def book_page(path, nb, pages):
    "A notebook of the book as Sphinx shall read it."
    nb = dict2nb(json.loads(nbformat.writes(nb))); nb.path_ = path
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); os.environ['IN_TEST'] = '1'; Pages()(nb); os.environ.pop('IN_TEST')
    out, heading, sections = empty(), path.stem, False
    held = [] # an exported cell, until the documentation of what it defines has been shown
    for c in [*nb.cells, None]:
        source = c.get('source') if c else ''
        if held and not (c and c.cell_type == 'code' and '#| echo: false' in (source or '')): out.cells.append(held.pop())
        if not source or not source.strip(): continue
        if c.cell_type == 'raw': # nbdev's front matter
            fm = yaml.safe_load(source.strip().strip('-')) or {}
            if 'title' in fm: out.cells.append(nbformat.v4.new_markdown_cell(f"# {fm['title']}\n\n*{fm.get('description', '').replace('*', '')}*"))
            continue
        if c.cell_type == 'markdown':
            for m in re.findall(r'^#+\s+(.+)$', source, re.M): heading = m
            sections = sections or bool(re.search(r'^## ', source, re.M))
            out.cells.append(nbformat.v4.new_markdown_cell(local(source, pages))); continue
        directives = {*c.directives_, *re.findall(r'^#\|\s*([\w:]+)', source, re.M)}
        cell = nbformat.v4.new_code_cell(re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip())
        cell.outputs = [nbformat.from_dict(dict(o)) for o in json.loads(json.dumps(c.get('outputs', []), default=dict))]
        for o in cell.outputs:
            if o.output_type == 'stream': o.text = ''.join(o.text)
        if 'echo:' in directives: # the documentation of a function, as Markdown
            for o in cell.outputs:
                text = ''.join(o.get('data', {}).get('text/markdown', ''))
                text = local(text, pages).replace('---\n\n', '', 1)
                if text: out.cells.append(nbformat.v4.new_markdown_cell(text if sections else re.sub('^###', '##', text, flags=re.M))) # under the title, where the page has no sections yet
            continue
        if 'default_exp' in directives or 'hide' in directives: continue
        if 'export' in directives or re.fullmatch(r'(\s*(import|from) .*\n?)+', cell.source): tag(cell, 'hide-input')
        clean_outputs(cell, f'{heading}: the figure that this cell draws', pages)
        (held if 'export' in directives else out.cells).append(cell)
    return out

def report_page(r, pages):
    "The executed notebook of a report as Sphinx shall read it."
    nb, heading = nbformat.read(r['folder']/f"{r['report']}.ipynb", 4), r['report']
    out = empty()
    for c in nb.cells:
        if c.cell_type == 'markdown':
            text = re.sub(r'^# (.+)$', lambda m: f"# {m[1]}: {md(r['label'])}", c.source, count=1, flags=re.M) if not out.cells else c.source
            for m in re.findall(r'^#+\s+(.+)$', text, re.M): heading = m
            out.cells.append(nbformat.v4.new_markdown_cell(re.sub(r'/(?:[\w.-]+/)+(?=[\w.-])', '…/', text) if '…' in text else text)); continue
        cell = nbformat.v4.new_code_cell(re.sub(r"(?<![\w.])/(?:[^\s/'\"()\[\]]+/)+", '…/', c.source)) # whose folders these were is nobody's business
        cell.outputs = c.get('outputs', [])
        if not {'parameters', 'injected-parameters'} & {*c.metadata.get('tags', [])}: tag(cell, 'hide-input')
        m = re.match(r'#\s*figure:\s*([\w-]+)', c.source)
        clean_outputs(cell, f"{heading}: figure {m[1] if m else ''} for {r['label']}", pages)
        out.cells.append(cell)
    return out


# --- pages that are made of results ---------------------------------------------------------------

def gallery(found, site):
    "All results, with their first figures."
    lines = ['# Reports', '', 'Each report is a notebook with parameters; these are the runs that come with the repository. Every number in them was computed by a cell of the page that shows it.', '']
    for name in dict.fromkeys(r['report'] for r in found):
        title, what = about(name)
        lines += [f'## {title}', '', what, '', '::::{container} gallery']
        for r in (r for r in found if r['report'] == name):
            page = f"{name}-{r['label']}"
            if r['figures']:
                shutil.copy(r['figures'][0], site/'reports'/f'{page}.png')
                lines += [f':::{{figure}} {page}.png', f":alt: {title}, {r['label']}: {r['figures'][0].stem}", f':target: {page}.html', '', f"[{md(r['label'])}]({page}.ipynb)", ':::']
            else: lines += [f"[{md(r['label'])}]({page}.ipynb)"]
        lines += ['::::', '']
    return '\n'.join([*lines, ':::{toctree}', ':hidden:', '', *(f"{r['report']}-{r['label']}.ipynb" for r in found), ':::', ''])

def claims(found):
    "The paper's claims, with what the reports found, and what nobody had asked or answered: first a table, then line by line."
    asked, said_by, lines = json.loads((HERE/'claims.json').read_text(encoding='utf-8')), [(r, verdicts(r)) for r in found], {}
    link = lambda r: f"[{md(r['label'])}](../reports/{r['report']}-{r['label']}.ipynb)"
    for c in asked: lines[c['claim']] = [(r, *v) for r, vs in said_by if r['report'] == c['report'] for v in vs if re.search(c['verdict'], v[0])]
    def found_of(c):
        said = [v[2] for v in lines[c['claim']]]
        return f"{said[0] if len({*said}) == 1 else 'unclear'} ({said.count('confirmed')} of {len(said)} confirmed)" if said else 'open'
    def row(c):
        runs = [r for r in found if r['report'] == c['report']]
        first = {}
        for r, _, _, figures in lines[c['claim']]: first.setdefault(r['label'], figures)
        return f"| [{c['claim']}](#{anchor(c['claim'])}){'. ' + c['note'] if 'note' in c else ''} | {about(c['report'])[0]}: {', '.join(map(link, runs)) or 'no run yet'} | {found_of(c)} | {'<br>'.join(f'{md(k)}: {v}' for k, v in first.items())} |"
    table = lambda cs, what: [f'| {what} | tested by | found | figures, of the first line of each run |', '|---|---|---|---|', *map(row, cs), '']
    claimed, open_ = [c for c in asked if not c.get('open')], [c for c in asked if c.get('open')]
    rows = ['# What was claimed, and what was found', '', (HERE/'pages'/'claims_head.txt').read_text(encoding='utf-8'), '', *table(claimed, 'what is claimed'), '## Open questions', '', 'What readers of the paper asked, or what came up here, with what is known by now.', '', *table(open_, 'what is asked')]
    for c in asked:
        some = [f"| {about(r['report'])[0]}, {link(r)} | {ok} | {claim} | {figures} |" for r, claim, ok, figures in lines[c['claim']]]
        rows += [f"## {c['claim']}", '', f"*{c['where']}.* {c.get('note', '')}".strip(), '', *(['| report | verdict | of what | figures |', '|---|---|---|---|', *some] if some else [f"No run of the report `{c['report']}` that says so is committed yet: open."]), '']
    return '\n'.join(rows)

def api(pages):
    "Every public name, by module, with the first line of its documentation."
    import importlib
    lines = ['# The package, name by name', '', 'The links lead to the page that explains a name, with its parameters, units, errors and sources.', '']
    for module, page in pages.items():
        lib = importlib.import_module(f'kdnb.{module}')
        lines += [f'## kdnb.{module}', '', (lib.__doc__ or '').strip(), '', '| name | what it is |', '|---|---|']
        for n in lib.__all__:
            o = getattr(lib, n)
            what = (o.__doc__ or '').strip().split('\n')[0].replace('|', '\\|') if callable(o) else f'`{type(o).__name__}`'
            documented = f'{module}.html#{n.lower()}' in str(modidx['syms'].get(f'kdnb.{module}', {}).get(f'kdnb.{module}.{n}', ('',))[0])
            lines.append(f"| [`{n}`](../book/{page}#{anchor(n)}) | {what} |" if documented and callable(o) else f'| [`{n}`](../book/{page}) | {what} |')
        lines.append('')
    return '\n'.join(lines)

def commands():
    "README's section on the commands, and the help of each."
    from kdnb.apps.options import make_parser
    table = re.search(r'## The commands\n(.*?)(?=\n## )', (ROOT/'README.md').read_text(encoding='utf-8'), re.S)[1]
    lines = ['# The commands', '', 'An unknown option, name or setting is an error that says which ones there are.', '', re.sub(r'`nbs/(\w+)`', r'[\1](../book/\1.ipynb)', table), '']
    for n, p in make_parser()._subparsers._group_actions[0].choices.items(): lines += [f'## kdnb {n}', '', '```text', p.format_help().replace(Path(sys.argv[0]).name, 'kdnb').rstrip(), '```', '']
    return '\n'.join(lines)


# --- all of it -------------------------------------------------------------------------------------

def clear(folder, mark):
    "Removes a folder that an earlier run made, which is known by a file that it left there. Another one is an error."
    if folder.is_symlink() or folder.exists() and not folder.is_dir() or folder.is_dir() and any(folder.iterdir()) and not (folder/mark).is_file():
        raise KdnbError(f'{folder} was not made by docs/build.py, so it is not removed: choose another folder')
    shutil.rmtree(folder, ignore_errors=True)

def make_source(site, ran, only):
    pages, found = module_pages(), results(ROOT/'outputs')
    clear(site, 'static/site.css')
    shutil.copytree(HERE/'static', site/'static'); shutil.copy(HERE/'conf.py', site)
    for d in ('book', 'reports', 'pages'): (site/d).mkdir(parents=True)
    for p in book():
        if not only or p.stem in only: nbformat.write(book_page(p, run(p) if ran else nbformat.read(p, 4), pages), site/'book'/p.name)
    for r in found: nbformat.write(report_page(r, {k: f'../book/{v}' for k, v in pages.items()}), site/'reports'/f"{r['report']}-{r['label']}.ipynb")
    (site/'reports'/'index.md').write_text(gallery(found, site), encoding='utf-8')
    for p in (HERE/'pages').glob('*.md'): shutil.copy(p, site/('.' if p.stem == 'index' else 'pages'))
    (site/'pages'/'claims.md').write_text(claims(found), encoding='utf-8')
    (site/'pages'/'commands.md').write_text(commands(), encoding='utf-8')
    (site/'pages'/'api.md').write_text(api(pages), encoding='utf-8')
    return site


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--no-run', action='store_true', help='the book without the outputs of its cells')
    p.add_argument('--only', nargs='*', default=[], help='notebooks of the book, by name; the site then has no others')
    p.add_argument('--out', default=str(ROOT/'_docs'), help='folder of the site')
    p.add_argument('--work', default=str(ROOT/'_proc'/'site'), help='folder of what Sphinx reads')
    a = p.parse_args()
    try:
        clear(Path(a.out), '.buildinfo')
        site = make_source(Path(a.work), not a.no_run, a.only)
    except KdnbError as e: return str(e)
    made = site.with_name('html') # myst-nb leaves a folder beside it
    command = module_command('sphinx', '-E', '-W', '--keep-going', '-q', '-b', 'html', site, made)
    status = subprocess.run(command, env=safe_environment()).returncode
    if not status: clear(Path(a.out), '.buildinfo'); shutil.move(made, a.out); print(f'the site is {a.out}: open {a.out}/index.html')
    return status


if __name__ == '__main__': sys.exit(main())
