"""README.md is nbs/index.ipynb as Markdown. `python tests/readme.py --write` writes it; the tests compare."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def readme() -> str:
    from nbconvert import MarkdownExporter
    text, _ = MarkdownExporter().from_filename(str(ROOT/'nbs'/'index.ipynb'))
    return '<!-- made from nbs/index.ipynb by `make readme`: edit that -->\n\n' + text.strip().replace('](../', '](') + '\n' # a path is from the root here


if __name__ == '__main__':
    if '--write' in sys.argv: (ROOT/'README.md').write_text(readme(), encoding='utf-8')
    else: print(readme())
