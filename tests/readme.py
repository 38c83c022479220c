"""README.md is nbs/index.ipynb as Markdown, and a table in CONTRIBUTING.md lists the long tests.
`python tests/readme.py --write` writes both; the tests compare.

Numbers are filled in: `{{REPORT/LABEL: NAME}}` becomes the figures of the claim REPORT.NAME of the
committed run of that report, `{{REPORT/LABEL: NAME method=distill}}` those of the one with this value,
`{{FILE.json: KEY.KEY}}` that value of outputs/FILE.json, `{{FILE.json: KEY|.1f}}` with a format."""
import json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def figures(place:str, claim:str) -> str:
    "The value of one pair of double braces."
    if place.endswith('.json'):
        value = json.loads((ROOT/'outputs'/place).read_text(encoding='utf-8'))
        path, _, spec = claim.partition('|')
        for key in path.split('.'): value = value[int(key) if isinstance(value, list) else key]
        return format(value, spec)
    from kdnb.reporting.claims import read_claims
    name, _, asked = claim.partition(' ')
    report, (key, _, value) = place.partition('/')[0], asked.partition('=')
    found = [c for c in read_claims(ROOT/'outputs'/place/'results.json') if c.id == f'{report}.{name}']
    found = [c for c in found if not key or str(c.values.get(key)) == value]
    if len(found) == 1: return found[0].figures
    raise SystemExit(f'{len(found)} claims of outputs/{place} are {claim!r}: there must be one')


def readme() -> str:
    from nbconvert import MarkdownExporter
    text, _ = MarkdownExporter().from_filename(str(ROOT/'nbs'/'index.ipynb'))
    text = re.sub(r'\{\{([^:{}]+): ([^{}]+)\}\}', lambda m: figures(m[1], m[2]), text)
    text = text.strip().replace('](../', '](') # paths from the root of the repository
    return f'<!-- made from nbs/index.ipynb by `make readme`: edit that -->\n\n{text}\n'


def long_tests() -> str:
    "The files with long tests as a table: how many, and minutes on one core."
    by_file = {}
    for name, seconds in json.loads((ROOT/'tests'/'long_tests.json').read_text()).items():
        by_file.setdefault(name.partition('::')[0], []).append(seconds)
    rows = [f'| `{f}` | {len(s)} | {sum(s)/60:.1f} |' for f, s in sorted(by_file.items())]
    total = [s for many in by_file.values() for s in many]
    rows.append(f'| all | {len(total)} | {sum(total)/60:.0f} |')
    return '\n'.join(['| file | long tests | minutes |', '|---|---|---|', *rows])


def contributing() -> str:
    "CONTRIBUTING.md with the present table of long tests."
    text = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8')
    table = re.compile(r'(?<=<!-- long tests -->\n).*?(?=\n<!-- end of long tests -->)', re.DOTALL)
    return table.sub(lambda m: long_tests(), text)


if __name__ == '__main__':
    if '--write' in sys.argv:
        (ROOT/'README.md').write_text(readme(), encoding='utf-8')
        (ROOT/'CONTRIBUTING.md').write_text(contributing(), encoding='utf-8')
    else: print(readme())
