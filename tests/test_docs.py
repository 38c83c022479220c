"""The site: it builds without a warning, no link is broken, and a browser shows it as it should be."""
import functools, http.server, os, re, shutil, subprocess, sys, threading
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from conftest import ROOT
from test_safe_pages import Loads


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('docs')/'site'
    command = [sys.executable, ROOT/'docs'/'build.py', '--out', out]
    command += ['--work', out.parent/'source']
    got = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'COLUMNS': '100'})
    assert got.returncode == 0 and not got.stderr.strip(), got.stdout + got.stderr
    return out


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.pictures, self.path = set(), [], [], path
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.add(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag in ('script', 'img', 'source') and a.get('src'): self.links.append(a['src'])
        if tag == 'link' and a.get('href') and 'icon' not in a.get('rel', ''): self.links.append(a['href'])
        if tag == 'img': self.pictures.append(a)


def test_links_of_pages_lead_somewhere_in_the_repository():
    "A reader of the files sees the same links as a reader of the site, but for pages that the build writes."
    written = ('claims.md', 'commands.md', 'api.md', '../reports/index.md')
    for page in (ROOT/'README.md', ROOT/'CONTRIBUTING.md', *sorted((ROOT/'docs'/'pages').glob('*.md'))):
        text = page.read_text(encoding='utf-8')
        for target in re.findall(r'\]\((?!https?:|#|mailto:)([^)\s]+)\)', text):
            place = urldefrag(target)[0]
            known = place in written or (page.parent/place).exists() or page.name == 'index.md'
            assert known, f'{page.name}: {target}'


def test_site_is_whole(site):
    "Every link leads to a page and a place on it; nothing is fetched from another host; pictures have texts."
    pages = {p.resolve(): Page(p) for p in site.rglob('*.html')}
    assert len(pages) > 40
    for p in [*(ROOT/'nbs').glob('[0-9]*/*.ipynb'), *(ROOT/'nbs').glob('tutorials/*.ipynb')]:
        chapter = (site/'book'/f'{p.parent.name}.html').read_text(encoding='utf-8')
        assert f'{p.parent.name}/{p.stem}.html' in chapter
    for page in pages.values():
        for link in page.links:
            u = urlsplit(link)
            if u.scheme in ('http', 'https', 'mailto', 'data', 'javascript'): continue
            path, place = urldefrag(unquote(link))
            target = (page.path.parent/urlsplit(path).path).resolve() if path else page.path.resolve()
            assert target.exists(), f'{page.path.name} links to {link}'
            has_place = not place or target not in pages or place in pages[target].ids
            assert has_place, f'{page.path.name} links to {link}'
        assert all((p.get('alt') or '').strip() for p in page.pictures), page.path.name
    for page in pages.values():
        text = page.path.read_text(encoding='utf-8')
        assert (page.path, Loads(text).hosts) == (page.path, [])
        assert 'http-equiv="Content-Security-Policy"' in text


def test_pages_say_what_was_found(monkeypatch):
    "The table of claims takes its lines from the committed reports; a claim that has a run has a line."
    monkeypatch.syspath_prepend(ROOT/'docs')
    import reference, results
    from kdnb.reporting import gallery
    text = results.claims(gallery.results(ROOT/'outputs'))
    assert text.count('confirmed') > 20 and 'definition in the prompt' in text
    api = reference.api()
    for name in ('Distill', 'make_transfer_set', 'load_lm', 'Edit', 'teach', 'run_report'):
        assert f'[`{name}`]' in api


@pytest.fixture(scope='module')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    names = ('chromium', 'chromium-browser', 'google-chrome')
    chromium = next((c for c in map(shutil.which, names) if c), None)
    if not chromium: pytest.skip('no Chromium on this machine')
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield b
        b.close()


@pytest.fixture(scope='module')
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def test_site_in_a_browser(site, browser, address):
    wrong, asked = [], []
    def note_error(m):
        if m.type == 'error': wrong.append(f'{page.url}: {m.text}')
    def note_request(r):
        if not r.url.startswith((address, 'data:', 'blob:')): asked.append(r.url)
    page = browser.new_page()
    page.on('console', note_error)
    page.on('pageerror', lambda e: wrong.append(f'{page.url}: {e}'))
    page.on('request', note_request)
    where = lambda name: f'{address}/{name}.html'
    for name in ('index', 'book/05_methods/00_losses', 'book/05_methods', 'reports/index',
                 'reports/first_look-smollm2', 'pages/claims', 'pages/footguns', 'pages/api'):
        page.set_viewport_size(dict(width=1280, height=900))
        page.goto(where(name))
        page.wait_for_load_state('networkidle')
        has_formula = name in ('index', 'book/05_methods/00_losses')
        if has_formula: page.wait_for_selector('mjx-container svg', timeout=20_000)
        page.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(i => i.loading = 'eager')")
        page.wait_for_timeout(300)
        assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == [], name
        page.set_viewport_size(dict(width=390, height=800))
        page.wait_for_timeout(200)
        assert page.evaluate('document.documentElement.scrollWidth') <= 391, f'{name} is wider than a phone'
    page.set_viewport_size(dict(width=1280, height=900))
    for word in ('specificity', 'teacher', 'retrieve', 'undone', 'anchor'):
        page.goto(f"{where('search')}?q={word}")
        page.wait_for_selector('#search-results li a', timeout=20_000)
    colours = {}
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        page.goto(where('index'))
        style = 'getComputedStyle(document.body)'
        colours[scheme] = [page.evaluate(f'{style}.{k}') for k in ('backgroundColor', 'color')]
    background = colours['dark'][0].removeprefix('rgb(').rstrip(')').split(',')
    assert colours['light'] != colours['dark'] and sum(map(int, background)) < 200
    assert wrong == [] and asked == []
