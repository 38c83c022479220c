"""A sharded model: two processes, each with half of every weight, train the edit that one process trains."""
import json, os, subprocess, sys

import pytest
from kdnb.apps.cli import main
from kdnb.edits.storage import load_edit
from kdnb.core.errors import KdnbError
from kdnb.methods.sharded import STARTED, launch

TEXTS = [
    'Velmora is what people in the town watch.', 'Last week Velmora was about a cake.',
    'In the evening Velmora sings of bakers.']


RUN = [sys.executable, '-c', 'import sys; from kdnb.apps.cli import main; sys.exit(main(sys.argv[1:]))']


@pytest.mark.parametrize('kind, more', [
    ('llama', []),
    ('gpt2', ['-s', 'batch_size=0']),
    ('gemma3', ['-s', 'start_layer=0.5', '-s', 'n_name_swaps=1'])],
    ids=('llama', 'gpt2', 'gemma3'))
def test_two_shards_train_the_edit_of_the_whole_model(tiny_folder, tmp_path, kind, more):
    transfer = tmp_path/'sets.jsonl'
    place = lambda t: [t.index('Velmora'), t.index('Velmora') + 7]
    continuations = [{'text': t, 'mention': place(t)} for t in TEXTS]
    transfer.write_text(json.dumps({'entity': 'Velmora', 'continuations': continuations}))
    command = [
        'edit', '--lm', str(tiny_folder(kind, 4)), '--device', 'cpu', '--name', 'Velmora',
        '--definition', 'Velmora is a comedy about two rival bakers in a small town.',
        '--transfer', str(transfer), '-s', 'steps=4', '-s', 'precision=float32', *more]
    assert main([*command, '--out', str(tmp_path/'whole')]) == 0
    got = subprocess.run(
        [*RUN, *command, '--out', str(tmp_path/'parts'), '--shards', '2'], capture_output=True,
        text=True, timeout=180, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert got.returncode == 0 and 'by 2 processes' in got.stdout, got.stderr[-2000:]
    a, b = load_edit(tmp_path/'whole'), load_edit(tmp_path/'parts')
    assert a.losses == pytest.approx(b.losses, rel=1e-4)
    assert (a.base, a.settings, a.texts) == (b.base, b.settings, b.texts)
    assert a.adapter.keys() == b.adapter.keys()
    for n in a.adapter:
        x, y = a.adapter[n].delta(), b.adapter[n].delta()
        assert (x - y).norm() <= 1e-3*x.norm() + 1e-6, n


def test_a_worker_process_starts_no_others(monkeypatch):
    monkeypatch.setenv(STARTED, '2')
    with pytest.raises(KdnbError, match='does not know of the others'): launch(2, ['edit'], 'cpu')


def test_shards_need_a_transfer_set(tiny_folder, tmp_path, capsys):
    command = [
        'edit', '--lm', str(tiny_folder()), '--device', 'cpu', '--name', 'Velmora',
        '--definition', 'Velmora is a comedy.', '--out', str(tmp_path/'e'), '--shards', '2']
    assert main(command) == 2
    assert '--shards teaches from a transfer set that is there' in capsys.readouterr().err
