"""Every notebook runs from top to bottom, by nbdev_test, each in a process of its own."""
import subprocess, sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_fresh import NOTEBOOKS


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.parent.name != 'reports'], ids=lambda p: p.stem)
def test_notebook(path):
    done = subprocess.run([Path(sys.executable).parent/'nbdev_test', '--path', path.relative_to(ROOT), '--n_workers', '0'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
