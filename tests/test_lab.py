"""The playground in JupyterLab, driven through a browser as a reader would. Slow."""
import shutil, socket, subprocess, sys, time, urllib.request

import pytest
from conftest import ROOT
from test_docs import browser  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def lab(tmp_path_factory, smollm2):
    "A server on a copy of the notebooks, so that the repository stays as it is."
    folder = tmp_path_factory.mktemp('lab')
    shutil.copytree(ROOT/'nbs', folder/'nbs')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [
        sys.executable, '-m', 'jupyter', 'lab', '--no-browser', '--allow-root',
        f'--ServerApp.port={port}', '--ServerApp.token=', '--ServerApp.password=']
    server = subprocess.Popen(
        command, cwd=folder/'nbs', stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f'http://127.0.0.1:{port}'
    for _ in range(120):
        try:
            urllib.request.urlopen(f'{address}/api', timeout=2)
            break
        except OSError: time.sleep(.5)
    yield address
    server.terminate()
    server.wait(20)


ALL_CELLS_RAN = r"""() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
    return prompts.length && prompts.every(p => /\[\d+\]/.test(p.textContent))
}"""
ERRORS = '.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]:has-text("Traceback")'


def test_playground_in_jupyterlab(lab, browser): # noqa: F811
    page = browser.new_page(viewport=dict(width=1400, height=1000))
    page.goto(f'{lab}/doc/tree/09_apps/05_playground.ipynb')
    page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=60_000)
    # before the kernel is idle, running a cell asks for one
    page.wait_for_selector('#jp-main-statusbar >> text=/\\| Idle/', timeout=60_000)
    page.click('text="Run"')
    page.click('text="Run All Cells"')
    last = page.locator('.jp-Notebook .jp-CodeCell').last
    page.wait_for_function(ALL_CELLS_RAN, timeout=240_000)
    assert page.locator(ERRORS).count() == 0
    assert last.is_visible()
    prompt = page.locator('.widget-text input').first
    prompt.scroll_into_view_if_needed()
    prompt.fill('The capital of France is')
    prompt.press('Enter')
    page.wait_for_selector('.widget-html >> text=Paris', timeout=60_000)
    page.locator('button:has-text("teach it")').first.click()
    page.wait_for_selector('.widget-html b:has-text("edited")', timeout=120_000)
    page.close()
