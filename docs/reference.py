"""Pages of reference: every public name of the package, and every command."""
import importlib, re, sys
from pathlib import Path

from book import book
from kdnb._modidx import d as modidx
from notebooks import anchor, page

HERE = Path(__file__).resolve().parent


def modules():
    "Module -> its notebook: `core.files` -> nbs/00_core/01_files.ipynb."
    named = ((re.search(r'#\|\s*default_exp ([\w.]+)', p.read_text(encoding='utf-8')), p) for p in book())
    return {m[1]: p for m, p in named if m}

def name_row(lib, name, to):
    "A public name as a line of its module's table."
    o, module = getattr(lib, name), lib.__name__
    address = modidx['syms'].get(module, {}).get(f'{module}.{name}', ('',))[0]
    if not callable(o): return f'| [`{name}`]({to}) | `{type(o).__name__}` |'
    place = f'#{anchor(name)}' if address.endswith(f'#{name.lower()}') else ''
    what = (o.__doc__ or '').strip().split('\n')[0].replace('|', '\\|')
    return f'| [`{name}`]({to}{place}) | {what} |'

def api():
    "Every public name, by module, with the first line of its documentation."
    lines = ['# The package, name by name', '',
             'The links lead to the page that explains a name, its parameters, units and errors.', '']
    for module, path in modules().items():
        lib = importlib.import_module(f'kdnb.{module}')
        rows = [name_row(lib, n, page(path)) for n in lib.__all__]
        head = [f'## kdnb.{module}', '', (lib.__doc__ or '').strip(), '']
        if rows: lines += [*head, '| name | what it is |', '|---|---|', *rows, '']
    return '\n'.join(lines)

def parsers_of(parser):
    "The parsers of the commands by name, each followed by those of its own commands."
    out = {}
    for n, p in parser._subparsers._group_actions[0].choices.items():
        out[n] = p
        if p._subparsers: out.update({f'{n} {k}': q for k, q in parsers_of(p).items()})
    return out

def commands():
    "The table of the commands, and the help of each."
    from kdnb.apps.parser import make_parser
    lines = ['# The commands', '',
             'An unknown option, name or setting is an error that lists the known ones.', '',
             (HERE/'pages'/'commands_head.txt').read_text(encoding='utf-8'), '']
    for n, p in parsers_of(make_parser()).items():
        text = p.format_help().replace(Path(sys.argv[0]).name, 'kdnb').rstrip()
        lines += [f'## kdnb {n}', '', '```text', text, '```', '']
    return '\n'.join(lines)
