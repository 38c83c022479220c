"""Runs the notebooks of the tutorials and chapters, and stores their outputs in them (`make book`).

    python docs/book.py            # all of them
    python docs/book.py distill    # those whose name or chapter contains this word

Readers see results before they run anything, and the site shows the same. Progress bars, messages on standard
error and folders of this machine are not stored."""
import argparse, json, re, sys, tempfile
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import clean_nb
from tqdm import tqdm

from kdnb.reporting.pages import safe_outputs
from kdnb.reporting.runner import KERNEL_OPTIONS, OwnKernel

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = r'^#\|\s*(eval:\s*false|slow)' # cells that tests skip, too


def book():
    "The notebooks of the tutorials and of the chapters, in reading order."
    nbs = ROOT/'nbs'
    return [*sorted((nbs/'tutorials').glob('[0-9]*.ipynb')), *sorted(nbs.glob('[0-9]*/[0-9]*.ipynb'))]

def execute(path):
    "The notebook with its outputs."
    nb = nbformat.read(path, 4)
    skipped = [c for c in nb.cells if c.cell_type == 'code' and re.search(SKIPPED, c.source, re.M)]
    for c in skipped: c.cell_type = 'raw'
    with TemporaryDirectory() as profile:
        client = NotebookClient(nb, timeout=600, kernel_name='python3', kernel_manager_class=OwnKernel,
                                extra_arguments=[*KERNEL_OPTIONS, f'--ipython-dir={profile}'],
                                resources={'metadata': {'path': str(path.parent)}})
        client.execute()
    for c in skipped: c.update(cell_type='code', outputs=[], execution_count=None)
    return nb

def is_wanted(output):
    "Whether an output is a result: no progress bar, nothing of standard error."
    is_widget = 'application/vnd.jupyter.widget-view+json' in output.get('data', {})
    return not is_widget and not (output.output_type == 'stream' and output.name == 'stderr')

def without_folders(value):
    "A JSON value in whose texts folders of this machine are shortened to `…/`."
    if isinstance(value, dict):
        return {k: v if k == 'image/png' else without_folders(v) for k, v in value.items()}
    if isinstance(value, list): return [without_folders(v) for v in value]
    if not isinstance(value, str): return value
    ours = '|'.join(re.escape(f'{p}/') for p in (tempfile.gettempdir(), Path.home(), ROOT))
    return re.sub(rf'(?:{ours})(?:[\w.@+-]+/)*', '…/', value)

def shown(output):
    "An output without the plain text of something that has a picture or a table."
    data = output.get('data', {})
    if {'image/png', 'text/html'} & set(data): data.pop('text/plain', None)
    return output

def store(path, nb):
    "Write the outputs of an executed notebook into its file."
    kept = json.loads(path.read_text(encoding='utf-8'))
    for cell, done in zip(kept['cells'], nb.cells, strict=True):
        if cell['cell_type'] != 'code': continue
        outputs = map(shown, safe_outputs(filter(is_wanted, done.outputs), markdown=False))
        cell['outputs'] = without_folders(json.loads(json.dumps([*outputs])))
    nb = nbformat.from_dict(kept)
    clean_nb(nb)
    text = nbformat.writes(nb)
    path.write_text(json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + '\n',
                    encoding='utf-8')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('words', nargs='*', help='part of the path of notebooks to run (default: all)')
    words = p.parse_args().words
    paths = [p for p in book() if not words or any(w in p.relative_to(ROOT).as_posix() for w in words)]
    failed = []
    for path in (bar := tqdm(paths)):
        bar.set_postfix_str(path.stem)
        try: store(path, execute(path))
        except CellExecutionError as e: failed.append(f'{path.relative_to(ROOT)}: {e}')
    print(*failed, sep='\n', file=sys.stderr)
    return bool(failed)


if __name__ == '__main__': sys.exit(main())
