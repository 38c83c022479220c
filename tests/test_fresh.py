"""What is derived is up to date: the module from the notebooks, README.md from the index, clean notebooks, a repository without leaks."""
import ast, re, shutil, subprocess, sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from readme import readme

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


@pytest.fixture(scope='module')
def again(tmp_path_factory):
    "A copy of the repository in which nbdev_export and nbdev_clean were run."
    d = tmp_path_factory.mktemp('again')
    for name in ('nbs', 'kdnb'): shutil.copytree(ROOT/name, d/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for name in ('settings.ini', 'setup.py', 'README.md'): shutil.copy(ROOT/name, d/name)
    for command in ('nbdev_export', 'nbdev_clean'):
        done = subprocess.run([Path(sys.executable).parent/command], cwd=d, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return d


def test_module_is_what_the_notebooks_export(again):
    for p in sorted((ROOT/'kdnb').glob('*.py')): assert p.read_text() == (again/'kdnb'/p.name).read_text(), f'{p.name} is stale: run nbdev_export'
    assert {p.name for p in (again/'kdnb').glob('*.py')} == {p.name for p in (ROOT/'kdnb').glob('*.py')}


def test_notebooks_are_clean(again):
    for p in NOTEBOOKS: assert p.read_text() == (again/p.relative_to(ROOT)).read_text(), f'{p.name} is not clean: run nbdev_clean'


def test_readme_is_made_from_the_index():
    assert (ROOT/'README.md').read_text() == readme(), 'README.md is stale: run make readme'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_form(path):
    nb = nbformat.read(path, 4)
    assert nb.cells[0].cell_type == 'markdown' or 'skip_exec' in nb.cells[0].source
    for i, c in enumerate(nb.cells):
        if c.cell_type != 'code': continue
        assert not c.outputs, f'cell {i} has outputs: notebooks are committed without, executed reports are in outputs/'
        if not c.source.lstrip().startswith('%'):
            imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(c.source).body]
            assert all(imports) or not any(imports), f'cell {i}: an import shares a cell with other code'
        if '#| export' in c.source: assert len(c.source.splitlines()) <= 60, f'cell {i}: an exported cell of {len(c.source.splitlines())} lines'


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.parent.name == 'reports'], ids=lambda p: p.stem)
def test_report_form(path):
    nb = nbformat.read(path, 4)
    assert sum('parameters' in c.metadata.get('tags', []) for c in nb.cells) == 1


def test_a_notebook_imports_only_from_earlier_ones():
    found = [m[1] for p in NOTEBOOKS if (m := re.search(r'#\|\s*default_exp (\w+)', p.read_text()))]
    for i, mod in enumerate(found):
        used = re.findall(r'^\s*from (?:kdnb)?\.(\w+) import', (ROOT/'kdnb'/f'{mod}.py').read_text(), re.M)
        later = [u for u in used if u not in found[:i+1]]
        assert not later, f'{mod} imports from a later notebook: {later}'


def test_outputs_are_small():
    for run in (ROOT/'outputs').glob('*/*'):
        for most, files in ((2, [p for p in run.rglob('*') if p.is_file() and p.suffix != '.safetensors']), (10, run.rglob('*.safetensors'))): # a trained editor is larger than a page
            size = sum(p.stat().st_size for p in files)
            assert size < most*2**20, f'{run} has {size/2**20:.1f} MiB'


def test_examples_in_the_readme_are_commands_that_exist():
    from kdnb.apps.options import make_parser
    known = make_parser()._subparsers._group_actions[0].choices
    for c in re.findall(r'kdnb (\w+) ', (ROOT/'README.md').read_text()): assert c in known or c in ('COMMAND', 'is', 'moves', 'cd', 'through'), c
