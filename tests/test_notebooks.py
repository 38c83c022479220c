"""Every notebook runs from top to bottom, as nbdev_test does it, each in a process of its own. They are
forked from one that has the large packages loaded, which takes longer than many of the notebooks."""
import multiprocessing, os, sys

import pytest
from conftest import ROOT
from test_fresh import NOTEBOOKS, name

PROCESSES = multiprocessing.get_context('forkserver')
LARGE = ['torch', 'transformers', 'peft', 'matplotlib.pyplot', 'seaborn', 'nbdev.test']
PROCESSES.set_forkserver_preload(LARGE)


def run(path, log):
    with open(log, 'w') as f:
        for at in (1, 2): os.dup2(f.fileno(), at)
    from nbdev.test import get_config, test_nb
    ok, _ = test_nb(path, skip_flags=get_config(path=ROOT).tst_flags.split(), basepath=ROOT)
    sys.exit(not ok)


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if 'reports' not in p.parts], ids=name)
def test_notebook(path, tmp_path):
    p = PROCESSES.Process(target=run, args=(path, tmp_path/'log'))
    p.start()
    p.join()
    assert p.exitcode == 0, (tmp_path/'log').read_text()[-6000:]


def test_a_notebook_that_fails_is_an_error(tmp_path):
    import nbformat
    path = tmp_path/'bad.ipynb'
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('assert 1 + 1 == 3')]), path)
    with pytest.raises(AssertionError, match='1 \\+ 1 == 3'): test_notebook(path, tmp_path)
