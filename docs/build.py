"""Builds the documentation site: the book (nbs), the reports (outputs) and the pages beside this file.

    python docs/build.py [--no-run] [--out _docs]

nbdev documents what a notebook exports, Sphinx with MyST-NB makes pages of notebooks and Markdown, and this
script prepares the source folder between the two. Notebooks are committed without outputs, so they are run
here, and run again only if they or the package changed."""
import argparse, hashlib, importlib, json, os, re, shutil, subprocess, sys, warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from execnb.nbio import dict2nb
from nbclient import NotebookClient
from nbdev.processors import FilterDefaults
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from kdnb._modidx import d as modidx
from kdnb.core.display import escape_markdown as md
from kdnb.core.errors import KdnbError
from kdnb.core.process import module_command, safe_environment
from kdnb.reporting.gallery import results, verdicts
from kdnb.reporting.jobs import about
from kdnb.reporting.pages import safe_outputs
from kdnb.reporting.runner import KERNEL_OPTIONS, OwnKernel

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parent.parent
CODE = sorted((ROOT/'kdnb').rglob('*.py')) + sorted((ROOT/'kdnb'/'assets').glob('*'))
SITE = '{doc_host}{doc_baseurl}/'.format(**modidx['settings']) # where nbdev's links lead


def book():
    "The notebooks of the chapters, and the tutorials."
    return sorted([*(ROOT/'nbs').glob('[0-9]*/[0-9]*.ipynb'), *(ROOT/'nbs'/'tutorials').glob('*.ipynb')])

def page(path):
    "The page of a notebook, from the top of the source folder: `/book/00_core/01_files.ipynb`."
    return f'/book/{path.parent.name}/{path.name}'

def modules():
    "Module -> its notebook: `core.files` -> nbs/00_core/01_files.ipynb."
    named = ((re.search(r'#\|\s*default_exp ([\w.]+)', p.read_text(encoding='utf-8')), p) for p in book())
    return {m[1]: p for m, p in named if m}

def anchor(name):
    "The anchor that MyST gives a heading."
    return re.sub(r'[^\w\- ]', '', name.lower()).replace(' ', '-')


# --- running -------------------------------------------------------------------------------------

def run(path):
    "A notebook with its outputs, from the cache where neither it nor the package changed."
    code = hashlib.sha256(b''.join(f.read_bytes() for f in CODE)).hexdigest()
    key = hashlib.sha256(path.read_bytes() + code.encode()).hexdigest()[:16]
    kept = ROOT/'_proc'/'run'/path.parent.name/f'{path.stem}-{key}.ipynb'
    if kept.exists(): return nbformat.read(kept, 4)
    nb = nbformat.read(path, 4)
    unrun = r'^#\|\s*(eval:\s*false|slow)' # in tests neither
    skipped = [c for c in nb.cells if c.cell_type == 'code' and re.search(unrun, c.source, re.M)]
    for c in skipped: c.cell_type = 'raw'
    with TemporaryDirectory() as profile:
        client = NotebookClient(nb, timeout=600, kernel_name='python3', kernel_manager_class=OwnKernel,
                                extra_arguments=[*KERNEL_OPTIONS, f'--ipython-dir={profile}'],
                                resources={'metadata': {'path': str(path.parent)}})
        client.execute()
    for c in skipped: c.update(cell_type='code', outputs=[], execution_count=None)
    kept.parent.mkdir(parents=True, exist_ok=True)
    for old in kept.parent.glob(f'{path.stem}-*.ipynb'): old.unlink()
    nbformat.write(nb, kept)
    return nb


# --- notebooks as pages ----------------------------------------------------------------------------

class Documented(FilterDefaults):
    "nbdev's processors. Exported code stays on the page, folded, since the text explains it."
    def base_procs(self):
        left_out = ('FrontmatterProc', 'rm_export', 'add_fold', 'insert_warning')
        return [p for p in super().base_procs() if p.__name__ not in left_out]

def document(nb, path):
    "The notebook after nbdev's processors: names are links, and `show_doc` was called for what is exported."
    nb = dict2nb(json.loads(nbformat.writes(nb)))
    nb.path_ = path
    os.environ['IN_TEST'] = '1'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        Documented()(nb)
    os.environ.pop('IN_TEST')
    return nb

def doc_pages():
    "nbdev's address of a module's page -> ours: `00_core/files.html` -> `/book/00_core/01_files.ipynb`."
    return {f"{p.parent.name}/{re.sub(r'^[0-9]+[a-z]?_', '', p.stem)}.html": page(p) for p in book()}

def local(text, pages):
    "nbdev's links, as links between our pages; without its links to the source."
    def link(m): return f'{pages[m[1]]}#{anchor(m[2])}' if m[1] in pages else m[0]
    text = re.sub(re.escape(SITE) + r'([\w/]+\.html)#([\w.]+)', link, text)
    return re.sub(r'\[source\]\([^)]*\)(\{[^}]*\})?\n*', '', text)

def empty():
    return new_notebook(metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3'},
                                  'language_info': {'name': 'python', 'pygments_lexer': 'ipython3'}})

def headings(text): return re.findall(r'^#+\s+(.+)$', text, re.M)

def imports_only(code):
    return all(re.match('(import|from|#) ?', l) or not l.strip() for l in code.splitlines())

def clean_outputs(cell, outputs, alt):
    "Gives a cell its outputs, without progress bars, stderr and live content; a picture gets its text."
    def wanted(o):
        is_widget = 'application/vnd.jupyter.widget-view+json' in o.get('data', {})
        return not is_widget and not (o.output_type == 'stream' and o.name == 'stderr')
    cell.outputs = safe_outputs(filter(wanted, outputs), markdown=False)
    has_picture = any('image/png' in o.get('data', {}) for o in cell.outputs)
    if has_picture: cell.metadata['mystnb'] = {'image': {'alt': alt}}

def as_nbformat(outputs):
    "The outputs of a cell of execnb, as those of nbformat."
    outputs = [nbformat.from_dict(o) for o in json.loads(json.dumps(outputs, default=dict))]
    for o in outputs:
        if o.output_type == 'stream': o.text = ''.join(o.text)
    return outputs

def documentation(outputs, pages, level):
    "The Markdown cells that `show_doc` gave, with headings of this level."
    texts = [''.join(o.get('data', {}).get('text/markdown', '')).replace('---\n\n', '', 1) for o in outputs]
    return [new_markdown_cell(re.sub('^###(?!#)', level, local(t, pages), flags=re.M)) for t in texts if t]

def book_page(path, nb, pages):
    "A notebook of the book as Sphinx reads it: a name's documentation precedes the code that defines it."
    out, heading, level = empty(), path.stem, '##' # the level of names: under the title, or under sections
    defined = [] # exported cells whose names are not documented yet
    for c in document(nb, path).cells:
        source, outputs = c.source or '', as_nbformat(c.get('outputs', []))
        is_doc = c.cell_type == 'code' and '#| echo: false' in source
        if not is_doc:
            out.cells += defined
            defined = []
        if not source.strip() or c.cell_type == 'raw': continue
        if c.cell_type == 'markdown':
            heading = (headings(source) or [heading])[-1]
            if re.search('^## ', source, re.M): level = '###'
            out.cells.append(new_markdown_cell(local(source, pages)))
            continue
        if is_doc:
            out.cells += documentation(outputs, pages, level)
            continue
        directives = {*c.directives_, *re.findall(r'^#\|\s*([\w:]+)', source, re.M)}
        if {'default_exp', 'hide'} & directives: continue
        cell = new_code_cell(re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip())
        if 'export' in directives or imports_only(cell.source): cell.metadata['tags'] = ['hide-input']
        clean_outputs(cell, outputs, f'{heading}: the figure that this cell draws')
        (defined if 'export' in directives else out.cells).append(cell)
    out.cells += defined
    return out

def report_page(r):
    "The executed notebook of a report as Sphinx reads it. Nobody's folders are shown."
    out, heading = empty(), r['report']
    for c in nbformat.read(r['folder']/f"{r['report']}.ipynb", 4).cells:
        if c.cell_type == 'markdown':
            text = c.source
            if not out.cells: text = text.replace('\n', f": {md(r['label'])}\n", 1) # the title
            heading = (headings(text) or [heading])[-1]
            if '…' in text: text = re.sub(r'/(?:[\w.-]+/)+(?=[\w.-])', '…/', text)
            out.cells.append(new_markdown_cell(text))
            continue
        cell = new_code_cell(re.sub(r"(?<![\w.])/(?:[^\s/'\"()\[\]]+/)+", '…/', c.source))
        is_parameters = {'parameters', 'injected-parameters'} & {*c.metadata.get('tags', [])}
        if not is_parameters: cell.metadata['tags'] = ['hide-input']
        figure = re.match(r'#\s*figure:\s*([\w-]+)', c.source)
        alt = f"{heading}: figure {figure[1] if figure else ''} for {r['label']}"
        clean_outputs(cell, c.get('outputs', []), alt)
        out.cells.append(cell)
    return out


# --- pages that are made of results ---------------------------------------------------------------

def report_link(r): return f"[{md(r['label'])}](/reports/{r['report']}-{r['label']}.ipynb)"

def gallery(found, site):
    "All results, with their first figures."
    lines = ['# Reports', '',
             'Each report is a notebook with parameters; these are the runs that come with the repository. '
             'Every number in them was computed by a cell of the page that shows it.', '']
    for name in dict.fromkeys(r['report'] for r in found):
        title, what = about(name)
        lines += [f'## {title}', '', what, '', '::::{container} gallery']
        for r in (r for r in found if r['report'] == name):
            if not r['figures']:
                lines.append(report_link(r))
                continue
            to, figure = f"{name}-{r['label']}", r['figures'][0]
            shutil.copy(figure, site/'reports'/f'{to}.png')
            alt = f"{title}, {r['label']}: {figure.stem}"
            options = [f':alt: {alt}', f':target: {to}.html']
            lines += [f':::{{figure}} {to}.png', *options, '', report_link(r), ':::']
        lines += ['::::', '']
    pages = [f"{r['report']}-{r['label']}.ipynb" for r in found]
    return '\n'.join([*lines, ':::{toctree}', ':hidden:', '', *pages, ':::', ''])

def verdict_of(lines):
    "What all verdicts on a claim say together."
    said = [ok for _, _, ok, _ in lines]
    if not said: return 'open'
    check_claim = said[0] if len({*said}) == 1 else 'unclear'
    return f"{check_claim} ({said.count('confirmed')} of {len(said)} confirmed)"

def claim_row(c, lines, found):
    "A claim as a line of the first tables; `lines` are (run, claim, verdict, figures)."
    first = {}
    for r, _, _, figures in lines: first.setdefault(r['label'], figures)
    runs = ', '.join(report_link(r) for r in found if r['report'] == c['report']) or 'no run yet'
    figures = '<br>'.join(f'{md(k)}: {v}' for k, v in first.items())
    claim = f"[{c['claim']}](#{anchor(c['claim'])}){'. ' + c['note'] if 'note' in c else ''}"
    return f"| {claim} | {about(c['report'])[0]}: {runs} | {verdict_of(lines)} | {figures} |"

def claim_section(c, lines):
    "All verdicts on a claim."
    head = [f"## {c['claim']}", '', f"*{c['where']}.* {c.get('note', '')}".strip(), '']
    if not lines: return [*head, f"Open: no committed run of the report `{c['report']}` tests this.", '']
    rows = [f"| {about(r['report'])[0]}, {report_link(r)} | {ok} | {claim} | {figures} |"
            for r, claim, ok, figures in lines]
    return [*head, '| report | verdict | of what | figures |', '|---|---|---|---|', *rows, '']

def claims(found):
    "The claims and open questions with what the reports found: first tables, then claim by claim."
    asked = json.loads((HERE/'claims.json').read_text(encoding='utf-8'))
    said = [(r, *v) for r in found for v in verdicts(r)]
    def lines(c): return [l for l in said if l[0]['report'] == c['report'] and re.search(c['verdict'], l[1])]
    def table(is_open, what):
        columns = [what, 'tested by', 'found', 'figures, of the first line of each run']
        head = [f"| {' | '.join(columns)} |", '|---|---|---|---|']
        return [*head, *(claim_row(c, lines(c), found) for c in asked if c.get('open', False) == is_open), '']
    intro = (HERE/'pages'/'claims_head.txt').read_text(encoding='utf-8')
    out = ['# What was claimed, and what was found', '', intro, '', *table(False, 'what is claimed'),
           '## Open questions', '', 'Questions of readers of the paper, and our own, with what is known.', '',
           *table(True, 'what is asked')]
    return '\n'.join([*out, *(l for c in asked for l in claim_section(c, lines(c)))])

def name_row(lib, name, to):
    "A public name as a line of its module's table."
    o, module = getattr(lib, name), lib.__name__
    address = modidx['syms'].get(module, {}).get(f'{module}.{name}', ('',))[0]
    if not callable(o): return f'| [`{name}`]({to}) | `{type(o).__name__}` |'
    place = f'#{anchor(name)}' if address.endswith(f'#{name.lower()}') else ''
    what = (o.__doc__ or '').strip().split('\n')[0].replace('|', '\\|')
    return f'| [`{name}`]({to}{place}) | {what} |'

def api():
    "Every public name, by module, with the first line of its documentation."
    lines = ['# The package, name by name', '',
             'The links lead to the page that explains a name, its parameters, units and errors.', '']
    for module, path in modules().items():
        lib = importlib.import_module(f'kdnb.{module}')
        rows = [name_row(lib, n, page(path)) for n in lib.__all__]
        head = [f'## kdnb.{module}', '', (lib.__doc__ or '').strip(), '']
        if rows: lines += [*head, '| name | what it is |', '|---|---|', *rows, '']
    return '\n'.join(lines)

def parsers_of(parser):
    "The parsers of the commands by name, each followed by those of its own commands."
    out = {}
    for n, p in parser._subparsers._group_actions[0].choices.items():
        out[n] = p
        if p._subparsers: out.update({f'{n} {k}': q for k, q in parsers_of(p).items()})
    return out

def commands():
    "The table of the commands, and the help of each."
    from kdnb.apps.parser import make_parser
    lines = ['# The commands', '',
             'An unknown option, name or setting is an error that lists the known ones.', '',
             (HERE/'pages'/'commands_head.txt').read_text(encoding='utf-8'), '']
    for n, p in parsers_of(make_parser()).items():
        text = p.format_help().replace(Path(sys.argv[0]).name, 'kdnb').rstrip()
        lines += [f'## kdnb {n}', '', '```text', text, '```', '']
    return '\n'.join(lines)


# --- all of it -------------------------------------------------------------------------------------

def clear(folder, mark):
    "Removes a folder that an earlier run made: it has a file of ours in it. Another folder is an error."
    is_other = folder.is_dir() and any(folder.iterdir()) and not (folder/mark).is_file()
    if folder.is_symlink() or folder.exists() and not folder.is_dir() or is_other:
        raise KdnbError(f'{folder} was not made by docs/build.py and is not removed: choose another folder')
    shutil.rmtree(folder, ignore_errors=True)

def make_source(site, is_run):
    "Fills the folder that Sphinx reads."
    found, pages = results(ROOT/'outputs'), doc_pages()
    clear(site, 'static/site.css')
    shutil.copytree(HERE/'pages', site/'pages')
    for name in ('index.md', 'book'): shutil.move(site/'pages'/name, site/name) # a page a chapter is in book
    shutil.copytree(HERE/'static', site/'static')
    shutil.copy(HERE/'conf.py', site)
    for p in book():
        to = site/page(p)[1:]
        to.parent.mkdir(exist_ok=True)
        nbformat.write(book_page(p, run(p) if is_run else nbformat.read(p, 4), pages), to)
    (site/'reports').mkdir()
    for r in found: nbformat.write(report_page(r), site/'reports'/f"{r['report']}-{r['label']}.ipynb")
    made = {'reports/index': gallery(found, site), 'pages/claims': claims(found),
            'pages/commands': commands(), 'pages/api': api()}
    for name, text in made.items(): (site/f'{name}.md').write_text(text, encoding='utf-8')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--no-run', action='store_true', help='the book without the outputs of its cells')
    p.add_argument('--out', default=str(ROOT/'_docs'), help='folder of the site')
    p.add_argument('--work', default=str(ROOT/'_proc'/'site'), help='folder of what Sphinx reads')
    a = p.parse_args()
    out, site = Path(a.out), Path(a.work)
    try:
        clear(out, '.buildinfo')
        make_source(site, not a.no_run)
    except KdnbError as e: return str(e)
    made = site.with_name('html') # myst-nb leaves a folder beside it
    command = module_command('sphinx', '-E', '-W', '--keep-going', '-q', '-b', 'html', site, made)
    status = subprocess.run(command, env=safe_environment()).returncode
    if not status:
        clear(out, '.buildinfo')
        shutil.move(made, out)
        print(f'the site is {out}: open {out}/index.html')
    return status


if __name__ == '__main__': sys.exit(main())
