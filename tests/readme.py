"""README.md is nbs/index.ipynb as Markdown. `python tests/readme.py --write` writes it; the tests compare.

A figure is not written there but asked for: `{{REPORT/LABEL: CLAIM}}` becomes the figures of the verdict whose claim begins so, from the committed run of that report,
and `{{FILE.json: KEY}}` what outputs/FILE.json has there (KEY.KEY within it)."""
import json, re, sys
from functools import reduce
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def figures(place:str, claim:str) -> str:
    if place.endswith('.json'): return str(reduce(lambda d, k: d[k], claim.split('.'), json.loads((ROOT/'outputs'/place).read_text(encoding='utf-8'))))
    from kdnb.reporting.gallery import results, verdicts
    result = next((r for r in results(ROOT/'outputs') if f"{r['report']}/{r['label']}" == place), None)
    found = [f for c, _, f in verdicts(result) if c.startswith(claim)] if result else []
    if len(found) != 1: raise SystemExit(f'{len(found)} verdicts of outputs/{place} begin with {claim!r}: there must be one')
    return found[0]


def readme() -> str:
    from nbconvert import MarkdownExporter
    text, _ = MarkdownExporter().from_filename(str(ROOT/'nbs'/'index.ipynb'))
    text = re.sub(r'\{\{([^:{}]+): ([^{}]+)\}\}', lambda m: figures(m[1], m[2]), text)
    return '<!-- made from nbs/index.ipynb by `make readme`: edit that -->\n\n' + text.strip().replace('](../', '](') + '\n' # a path is from the root here


if __name__ == '__main__':
    if '--write' in sys.argv: (ROOT/'README.md').write_text(readme(), encoding='utf-8')
    else: print(readme())
