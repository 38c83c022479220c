"""What is derived is up to date: modules, README.md, clean notebooks; and outputs are small."""
import ast, json, re, shutil, subprocess, sys
from pathlib import Path

import nbformat, papermill, pytest
from conftest import ROOT
from readme import contributing, readme

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

def name(path):
    "Chapter and name of a notebook: 00_core/01_files."
    return path.relative_to(ROOT/'nbs').with_suffix('').as_posix()


@pytest.fixture(scope='module')
def again(tmp_path_factory):
    "A copy of the repository in which nbdev_export and nbdev_clean were run."
    d = tmp_path_factory.mktemp('again')
    ignored = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for folder in ('nbs', 'kdnb'): shutil.copytree(ROOT/folder, d/folder, ignore=ignored)
    for file in ('settings.ini', 'setup.py', 'README.md'): shutil.copy(ROOT/file, d/file)
    for command in ('nbdev_export', 'nbdev_clean'):
        done = subprocess.run([Path(sys.executable).parent/command], cwd=d, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return d


def test_modules_are_what_the_notebooks_export(again):
    def texts(root): return {str(p.relative_to(root)): p.read_text() for p in (root/'kdnb').rglob('*.py')}
    ours, exported = texts(ROOT), texts(again)
    assert ours.keys() == exported.keys(), 'run nbdev_export, or remove a module without a notebook'
    for name in ours: assert ours[name] == exported[name], f'{name} is stale: run nbdev_export'


def test_notebooks_are_clean(again):
    for p in NOTEBOOKS:
        is_clean = p.read_text() == (again/p.relative_to(ROOT)).read_text()
        assert is_clean, f'{name(p)} is not clean: run nbdev_clean'


def test_contributing_lists_the_long_tests():
    text = (ROOT/'CONTRIBUTING.md').read_text()
    assert text == contributing(), 'the table of long tests in CONTRIBUTING.md is stale: run make readme'
    assert '<!-- long tests -->' in text
    names = json.loads((ROOT/'tests'/'long_tests.json').read_text())
    gone = [n for n in names if not re.search(rf"def {n.split('::')[1].split('[')[0]}\b", (
        ROOT/n.split('::')[0]).read_text())]
    assert names and not gone, f'long_tests.json names tests that do not exist: {gone}'


def test_readme_is_made_from_the_index():
    assert (ROOT/'README.md').read_text() == readme(), 'README.md is stale: run make readme'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_notebook_form(path):
    nb = nbformat.read(path, 4)
    assert nb.cells[0].cell_type == 'markdown' or 'skip_exec' in nb.cells[0].source
    outputs = [o for c in nb.cells for o in c.get('outputs', [])]
    if 'reports' in path.parts: assert not outputs, 'the runs of reports are in outputs/'
    assert len(json.dumps(outputs)) < 300_000, 'its outputs are large: draw smaller figures'
    messages = [o for o in outputs if o.output_type == 'error' or o.get('name') == 'stderr']
    assert not messages, 'run make book: it stores results only'


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if 'reports' in p.parts], ids=name)
def test_report_form(path):
    nb = nbformat.read(path, 4)
    cell, = [c for c in nb.cells if 'parameters' in c.metadata.get('tags', [])]
    names = [n.targets[0].id for n in ast.parse(cell.source).body]
    read = list(papermill.inspect_notebook(nb))
    assert read == names, 'papermill cannot read a comment with an equals sign'


def test_ruff():
    command = [Path(sys.executable).parent/'ruff', 'check', '--no-cache', 'kdnb', 'tests', 'docs', 'setup.py']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_run_says_how_it_was_made():
    for notebook in (ROOT/'outputs').glob('*/*/*.ipynb'):
        run = json.loads((notebook.parent/'run.json').read_text(encoding='utf-8'))
        assert run['report'] == notebook.stem and {'parameters', 'minutes', 'machine'} <= set(run), notebook


def test_outputs_are_small():
    def size(folder): return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())
    for run in (ROOT/'outputs').glob('*/*'):
        assert size(run) < 2*2**20, f'{run} has {size(run)/2**20:.1f} MiB'
    assert size(ROOT/'outputs') < 20*2**20, f"outputs has {size(ROOT/'outputs')/2**20:.1f} MiB"


def test_examples_in_the_readme_are_commands_that_exist():
    from kdnb.apps.parser import make_parser
    known = make_parser()._subparsers._group_actions[0].choices
    prose = ('COMMAND', 'is', 'moves', 'cd', 'through', 'import', 'reads')
    for c in re.findall(r'kdnb (\w+) ', (ROOT/'README.md').read_text()): assert c in known or c in prose, c
