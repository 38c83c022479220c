"""What `import kdnb` gives and loads, and what the package needs to be installed."""
import ast, re, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions

import kdnb as package
import pytest
from conftest import ROOT
from kdnb.core.errors import KdnbError
from kdnb.core.extras import EXTRAS, need_extra


def test_importing_the_package_is_quick():
    code = "import sys, kdnb; print(sorted({'torch', 'transformers', 'numpy'} & {*sys.modules}), dir(kdnb))"
    got = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert got.stdout.startswith('[] ') and "'load_lm'" in got.stdout, got.stdout + got.stderr


@pytest.mark.parametrize('name', package.__all__)
def test_every_name_of_the_package_resolves(name):
    value = getattr(package, name)
    assert value.__module__.startswith('kdnb.') and value.__name__ == name and name in dir(package)


def test_an_unknown_name_of_the_package():
    with pytest.raises(AttributeError, match="'kdnb' has no attribute 'nothing'"): package.nothing
    with pytest.raises(ImportError, match='nothing'): exec('from kdnb import nothing')


def normal(requirement): return re.split('[<>=]', requirement.lower().replace('_', '-'))[0]

def requirements(extra=''):
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return {normal(r) for r in cfg['DEFAULT'][f'{extra}requirements'].split()}

def imported(path):
    "Packages of others that a module imports: (name, whether it is imported within a function)."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    late = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for n in ast.walk(tree):
        names = [a.name for a in n.names] if isinstance(n, ast.Import) else []
        if isinstance(n, ast.ImportFrom) and not n.level: names = [n.module]
        tops = {name.split('.')[0] for name in names} - {'kdnb', *sys.stdlib_module_names}
        for top in tops: yield top, id(n) in late

LAB = {f'kdnb/reporting/{name}.py' for name in ('pages', 'runner', 'jobs', 'gallery')} # they need the extra

def test_what_the_package_imports_is_required():
    core, lab, others = requirements(), requirements('lab_'), requirements('ray_')
    known = packages_distributions()
    for p in sorted((ROOT/'kdnb').rglob('*.py')):
        where = p.relative_to(ROOT).as_posix()
        for top, is_late in imported(p):
            allowed = core | (lab if where in LAB or is_late else set()) | (others if is_late else set())
            assert {normal(d) for d in known.get(top, [top])} & allowed, f'{where} imports {top}'


def test_an_extra_names_packages_that_it_requires():
    for extra, packages in EXTRAS.items(): assert {normal(p) for p in packages} <= requirements(f'{extra}_')


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(EXTRAS, 'lab', ('papermill', 'no_such_package'))
    sentence = (r"^reports need the extra 'lab' \(no_such_package not installed\): "
                r"pip install -e '\.\[lab\]' in the repository of kdnb$")
    with pytest.raises(KdnbError, match=sentence): need_extra('lab', 'reports')


def test_classes_are_whole_whatever_is_imported():
    "Methods that notebooks explain one by one are there as soon as their class is."
    for code in ('from kdnb.edits.edit import Edit; Edit.save, Edit.load, Edit.on',
                 'from kdnb.models.model import LM; LM.packs, LM.shares, LM.writes, LM.tries',
                 'from kdnb import Distill, Edit; Edit.save'):
        got = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
        assert got.returncode == 0, got.stderr
