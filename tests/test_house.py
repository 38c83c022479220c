"""The rules of house.md hold, and each finds a planted fault."""
import house
import pytest
from conftest import ROOT
from house import Cell, Module, Notebook

NAMES = ['kdnb.core.files', 'kdnb.core.text', 'kdnb.data.entities', 'kdnb.apps.teach', 'kdnb.apps.cli']


@pytest.fixture(scope='module')
def faults(): return house.all_faults()


RULES = [*house.NOTEBOOK_RULES, house.unneeded_names, *house.MODULE_RULES]

@pytest.mark.parametrize('rule', [r.__name__ for r in RULES])
def test_house(rule, faults):
    found = [f'{path}: {f}' for path, fs in faults[rule].items() for f in fs]
    assert not found, '\n'.join([getattr(house, rule).__doc__, *found])


def exported(source): return Cell('code', '#| export\n' + source)

GOOD = [Cell('markdown', '# Files\n\n> Reading and writing'),
        Cell('code', '#| default_exp core.files'),
        exported('import os'),
        Cell('markdown', '## Reading'),
        Cell('markdown', 'It reads.\n\n```text\n## no heading\n```'),
        exported('def size(path):\n    "In bytes; as a number."\n    return os.stat(path).st_size'),
        Cell('code', "size('.')")]


@pytest.mark.parametrize('rule', house.NOTEBOOK_RULES, ids=lambda r: r.__name__)
def test_a_notebook_without_faults(rule):
    assert rule(Notebook('nbs/00_core/01_files.ipynb', GOOD)) == []


PLANTED = [
    ('long_lines', exported('x = "' + 'a'*110 + '"')),
    ('long_cells', exported('\n'.join(f'a{i} = 1' for i in range(61)))),
    ('long_modules', exported('\n'.join(f'a{i} = 1' for i in range(251)))),
    ('joined_statements', exported('a = 1; b = 2')),
    ('joined_statements', exported('def f(): x = ";"; return x\nf = None')),
    ('shared_headings', Cell('markdown', '## Reading\n\nText.')),
    ('shared_headings', Cell('markdown', 'Text.\n\n### Reading')),
    ('shared_imports', Cell('code', 'import os\nos.getcwd()')),
    ('uncalled_functions', exported('def lonely(): pass')),
    ('uncalled_functions', exported('def outer():\n    lonely()\n\ndef lonely(): pass')),
]

@pytest.mark.parametrize('rule, cell', PLANTED, ids=lambda x: x if isinstance(x, str) else '')
def test_a_planted_fault_in_a_notebook(rule, cell):
    assert getattr(house, rule)(Notebook('nbs/00_core/01_files.ipynb', [*GOOD, cell]))


def test_a_long_line_of_an_example_is_a_fault():
    cell = Cell('code', '"' + 'a'*110 + '"')
    assert house.long_lines(Notebook('nbs/00_core/01_files.ipynb', [cell]))


def test_a_name_that_nobody_needs_is_a_fault():
    nb = Notebook('nbs/00_core/01_files.ipynb', [*GOOD, exported('LIMIT = 1\n_LIMIT = 2')])
    assert house.unneeded_names(nb, {'LIMIT': {nb.path}}) == ['LIMIT is used nowhere else']
    assert not house.unneeded_names(nb, {'LIMIT': {nb.path, 'tests/test_files.py'}})


MODULES = [ # name of the module, its code, and whether that is a fault
    ('wrong_order', 'kdnb.data.entities', 'from ..core.files import read_json', False),
    ('wrong_order', 'kdnb.data.entities', 'from ..core import files', False),
    ('wrong_order', 'kdnb.core.text', 'from .files import read_json', False),
    ('wrong_order', 'kdnb.core.files', 'from .text import find_mention', True),
    ('wrong_order', 'kdnb.core.files', 'from . import text', True),
    ('wrong_order', 'kdnb.core.files', 'from ..data.entities import Entity', True),
    ('wrong_order', 'kdnb.core.files', 'from ..data import entities', True),
    ('wrong_order', 'kdnb.core.files', 'from kdnb.data.entities import Entity', True),
    ('wrong_order', 'kdnb.core.files', 'import kdnb.data.entities as e', True),
    ('wrong_order', 'kdnb.core.files', 'from kdnb import Entity', True),
    ('wrong_order', 'kdnb.core.files', 'def f():\n    from ..data.entities import Entity', True),
    ('wrong_order', 'kdnb.apps.teach', 'def f():\n    from .cli import main', False),
    ('wrong_order', 'kdnb.apps.teach', 'from .cli import main', True),
    ('private_imports', 'kdnb.core.text', 'from .files import read_json, __doc__ as d', False),
    ('private_imports', 'kdnb.core.text', 'from .files import _read', True),
    ('private_imports', 'kdnb.core.text', 'from . import files\nfiles._read()', True),
    ('private_imports', 'kdnb.core.text', 'import kdnb.core.files as files\nfiles._read()', True),
    ('outside_assignments', 'kdnb.core.text', 'class Text:\n    n = 1\n    def f(self): self.n = 2', False),
    ('outside_assignments', 'kdnb.core.text', 'class Text: pass\nlimits = Text()\nlimits.n = 3', False),
    ('outside_assignments', 'kdnb.core.text', 'class Text: pass\ndef f(self): pass\nText.f = f', True),
    ('outside_assignments', 'kdnb.core.text', 'class Text: pass\nfor n in "ab": setattr(Text, n, 1)', True),
    ('outside_assignments', 'kdnb.core.text', 'from .files import Folder\nFolder.size, x = 1, 2', True),
]

@pytest.mark.parametrize('rule, name, source, is_fault', MODULES)
def test_a_planted_fault_in_a_module(rule, name, source, is_fault):
    assert bool(getattr(house, rule)(Module(name, source), NAMES)) == is_fault


def test_every_module_has_its_place_in_the_order():
    names = house.module_names(house.notebooks())
    files = [p.relative_to(ROOT).with_suffix('') for p in (ROOT/'kdnb').glob('*/*.py')]
    made = {p.as_posix().replace('/', '.') for p in files if p.stem != '__init__'}
    assert made == set(names) and len(names) == len(set(names))
