"""The rules of the house: functions that find faults in a notebook or in an exported module, as sentences.

    python tests/house.py   # all faults of the tree

`tests/test_house.py` runs them on the tree, and shows for each that it finds a planted fault."""
import ast, io, json, re, tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_LINE, MAX_CELL, MAX_MODULE = 110, 60, 250 # characters, lines, exported lines


@dataclass
class Cell:
    kind: str # 'markdown', 'code' or 'raw'
    source: str
    @property
    def is_exported(self): return self.kind == 'code' and bool(re.search(r'^#\|\s*export', self.source, re.M))
    @property
    def lines(self): return [l for l in self.source.splitlines() if not l.startswith('#|')]
    @property
    def tree(self):
        "The syntax tree; an empty one for a cell with magics."
        is_magic = self.kind != 'code' or re.search(r'^\s*[%!]', self.source, re.M)
        return ast.parse('' if is_magic else self.source)


@dataclass
class Notebook:
    path: str # from the root of the repository
    cells: list
    @property
    def exported(self): return [(i, c) for i, c in enumerate(self.cells) if c.is_exported]


@dataclass
class Module:
    name: str # 'kdnb.core.files'
    source: str
    @property
    def tree(self): return ast.parse(self.source)


# --- rules about notebooks: each takes a Notebook -------------------------------------------------

def long_lines(nb):
    "A line of code has at most 110 characters."
    long = [(i, l) for i, c in enumerate(nb.cells) if c.kind == 'code' for l in c.lines if len(l) > MAX_LINE]
    return [f'cell {i}: {len(l)} characters: {l.strip()[:60]}' for i, l in long]

def long_cells(nb):
    "An exported cell has at most 60 lines."
    return [f'cell {i} has {len(c.lines)} lines' for i, c in nb.exported if len(c.lines) > MAX_CELL]

def long_modules(nb):
    "A notebook exports at most 250 lines."
    n = sum(len(c.lines) for _, c in nb.exported)
    return [f'{n} exported lines'] if n > MAX_MODULE else []

def joined_statements(nb):
    "Exported code joins no statements by a semicolon."
    def joins(c):
        tokens = tokenize.generate_tokens(io.StringIO(c.source).readline)
        return [t for t in tokens if t.type == tokenize.OP and t.string == ';']
    return [f'cell {i}: {t.line.strip()[:60]}' for i, c in nb.exported for t in joins(c)]

def shared_headings(nb):
    "A heading below the title stands in a cell of its own."
    def is_shared(c):
        text = re.sub(r'^```.*?^```', '', c.source, flags=re.M | re.S)
        return re.search('^##', text, re.M) and len([l for l in text.splitlines() if l.strip()]) > 1
    texts = [(i, c) for i, c in enumerate(nb.cells) if c.kind == 'markdown']
    return [f'cell {i}: {c.source[:60]!r}' for i, c in texts if is_shared(c)]

def shared_imports(nb):
    "Imports stand in cells of their own."
    def is_shared(c): return len({isinstance(n, (ast.Import, ast.ImportFrom)) for n in c.tree.body}) > 1
    return [f'cell {i}: {c.source[:60]!r}' for i, c in enumerate(nb.cells) if is_shared(c)]

def is_patch(node): return any('patch' in ast.unparse(d) for d in node.decorator_list)

def uncalled_functions(nb):
    "Each public function is used in an example or a test of its notebook."
    def is_public(n): return isinstance(n, FUNCTIONS) and not n.name.startswith('_') and not is_patch(n)
    defined = [n.name for _, c in nb.exported for n in c.tree.body if is_public(n)]
    shown = [n for c in nb.cells if not c.is_exported for n in ast.walk(c.tree)]
    used = {n.id for n in shown if isinstance(n, ast.Name)}
    used |= {n.attr for n in shown if isinstance(n, ast.Attribute)}
    return [f'{name} is in no example' for name in dict.fromkeys(defined) if name not in used]


def unneeded_names(nb, uses):
    "A public function or constant is used in an example or in another file; if not, it is private."
    tops = [n for _, c in nb.exported for n in c.tree.body]
    names = [n.name for n in tops if isinstance(n, FUNCTIONS) and not is_patch(n)]
    names += [t.id for n in tops if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    shown = {w for c in nb.cells if not c.is_exported for w in re.findall(r'\w+', c.source)}
    return [f'{name} is used nowhere else' for name in dict.fromkeys(names)
            if not name.startswith('_') and name not in shown and not uses.get(name, set()) - {nb.path}]


# --- rules about modules: each takes a Module and the names of all modules in reading order -------

def imports(module, names):
    "What is imported of this package: (node, module, name in it or None, whether this is within a function)."
    tree = module.tree
    lazy = {id(n) for f in ast.walk(tree) if isinstance(f, FUNCTIONS) for n in ast.walk(f)}
    for n in ast.walk(tree):
        if isinstance(n, ast.Import):
            for a in n.names:
                if a.name.startswith('kdnb.'): yield n, a.name, None, id(n) in lazy
        elif isinstance(n, ast.ImportFrom):
            folders = module.name.split('.')[:-n.level] if n.level else []
            source = '.'.join(filter(None, [*folders, n.module]))
            if source.split('.')[0] != 'kdnb': continue
            for a in n.names:
                whole = f'{source}.{a.name}'
                if whole in names: yield n, whole, None, id(n) in lazy
                else: yield n, source, a.name, id(n) in lazy

def wrong_order(module, names):
    "A module imports only from earlier notebooks; only an application may do so late, within a function."
    earlier, is_app = names[:names.index(module.name)], module.name.startswith('kdnb.apps.')
    late = [(n, source) for n, source, _, is_lazy in imports(module, names)
            if source not in earlier and not (is_app and is_lazy)]
    return [f'line {n.lineno}: imports from {source}, which comes later' for n, source in late]

def private_imports(module, names):
    "No private name of another module is used."
    found = list(imports(module, names))
    private = [f'line {n.lineno}: imports {name} from {source}' for n, source, name, _ in found
               if name and re.match('_(?!_)', name)]
    bound = {a.asname or a.name.split('.')[-1] for n, _, name, _ in found if name is None for a in n.names}
    used = [n for n in ast.walk(module.tree) if isinstance(n, ast.Attribute) and re.match('_(?!_)', n.attr)
            and isinstance(n.value, ast.Name) and n.value.id in bound]
    return private + [f'line {n.lineno}: uses {ast.unparse(n)}' for n in used]

def outside_assignments(module, names):
    "Nothing is assigned to a class from outside."
    tree = module.tree
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (*FUNCTIONS, ast.ClassDef)) for n in ast.walk(f)}
    defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    def is_class(n):
        return isinstance(n, ast.Name) and (n.id in defined or bool(re.match('_?[A-Z][A-Za-z]*[a-z]', n.id)))
    def is_fault(n):
        if isinstance(n, ast.Call): return ast.unparse(n.func) == 'setattr' and is_class(n.args[0])
        is_assigned = isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
        return is_assigned and is_class(n.value) and id(n) not in inside
    return [f'line {n.lineno}: {ast.unparse(n)[:60]} is assigned' for n in ast.walk(tree) if is_fault(n)]


NOTEBOOK_RULES = (long_lines, long_cells, long_modules, joined_statements, shared_headings, shared_imports,
                  uncalled_functions)
MODULE_RULES = (wrong_order, private_imports, outside_assignments)


# --- the tree --------------------------------------------------------------------------------------

def notebooks():
    paths = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
    for p in paths:
        cells = json.loads(p.read_text(encoding='utf-8'))['cells']
        cells = [Cell(c['cell_type'], ''.join(c['source'])) for c in cells]
        yield Notebook(p.relative_to(ROOT).as_posix(), cells)

def word_uses(nbs):
    "Identifier -> the notebooks, tests and scripts in whose code it occurs."
    texts = {nb.path: '\n'.join(c.source for c in nb.cells if c.kind == 'code') for nb in nbs}
    others = [p for folder in ('tests', 'docs') for p in (ROOT/folder).glob('*.py')]
    others += [ROOT/'kdnb'/'__init__.py', ROOT/'settings.ini']
    texts |= {str(p): p.read_text(encoding='utf-8') for p in others}
    uses = {}
    for path, text in texts.items():
        for word in set(re.findall(r'\w+', text)): uses.setdefault(word, set()).add(path)
    return uses

def module_names(nbs):
    "Modules in the order of their notebooks."
    found = (re.search(r'^#\|\s*default_exp ([\w.]+)', c.source, re.M) for nb in nbs for c in nb.cells)
    return [f'kdnb.{m[1]}' for m in found if m]

def all_faults():
    "Rule -> file -> faults."
    nbs = [nb for nb in notebooks() if nb.path != 'nbs/index.ipynb']
    names, out = module_names(nbs), {}
    for rule in NOTEBOOK_RULES: out[rule.__name__] = {nb.path: rule(nb) for nb in nbs}
    uses = word_uses(nbs)
    out['unneeded_names'] = {nb.path: unneeded_names(nb, uses) for nb in nbs}
    for rule in MODULE_RULES:
        out[rule.__name__] = {}
        for name in names:
            path = name.replace('.', '/') + '.py'
            out[rule.__name__][path] = rule(Module(name, (ROOT/path).read_text(encoding='utf-8')), names)
    return {rule: {path: faults for path, faults in found.items() if faults} for rule, found in out.items()}


if __name__ == '__main__':
    faults = all_faults()
    for rule, found in faults.items():
        for path, fs in found.items(): print(*(f'{path}: {rule}: {f}' for f in fs), sep='\n')
    print(*(f'{sum(map(len, found.values()))} {rule}' for rule, found in faults.items()), sep='\n')
