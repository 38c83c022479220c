"""Notebooks as pages of the site: those of the book as nbdev documents them, and the executed reports."""
import json, os, re, warnings

import nbformat
from execnb.nbio import dict2nb
from nbdev.processors import FilterDefaults
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from book import book, is_wanted
from kdnb._modidx import d as modidx
from kdnb.core.display import escape_markdown as md
from kdnb.reporting.pages import safe_outputs

SITE = '{doc_host}{doc_baseurl}/'.format(**modidx['settings']) # where nbdev's links lead


def page(path):
    "The page of a notebook, from the top of the source folder: `/book/00_core/01_files.ipynb`."
    return f'/book/{path.parent.name}/{path.name}'

def anchor(name):
    "The anchor that MyST gives a heading."
    return re.sub(r'[^\w\- ]', '', name.lower()).replace(' ', '-')


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
    cell.outputs = safe_outputs(filter(is_wanted, outputs), markdown=False)
    for data in (o.data for o in cell.outputs if 'text/html' in o.get('data', {})):
        # without links to places within the output, since their ids are removed
        data['text/html'] = re.sub(r'<a\b[^>]*href="#[^"]*"[^>]*>.*?</a>', '', data['text/html'])
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
