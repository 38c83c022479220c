"""Runs: the same results after an interruption, nothing repeated, nothing lost, nothing mixed up."""
import json, os, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from kdnb.core.files import write_json, read_json
from kdnb.experiments.runs import key, REGIMES, Experiment
from kdnb.methods.checkpoint import TrainingCheckpoint
from kdnb.core.errors import KdnbError
from kdnb.data.dataset import sample
from kdnb.experiments.results import collect

UNTRAINED = 'base', 'prepend', 'random', 'retrieve'
LOCATING = 'rome', 'memit'
METHODS = *UNTRAINED, 'finetune-definition', 'finetune-transfer', 'distill', *LOCATING
HOW = dict(n_specificity=4, n_other_entities=1, open_ended=False)


def run(lm, ds, method, folder, regime=REGIMES[0], sets=None, **kw):
    settings = {} if method in UNTRAINED else dict(steps=2, lr=1e-2)
    if method in LOCATING: settings.update(text=str(ROOT/'kdnb'/'assets'/'neutral.txt'), n_contexts=2)
    return Experiment(lm, ds, method, regime, transfer=sets or {}, folder=folder, **{**HOW, **kw, **settings})


def results(folder):
    keep = 'target', 'specificity', 'other_entities', 'entities', 'stage', 'losses'
    kept = lambda path: {k: v for k, v in read_json(path).items() if k in keep}
    return {p.name: kept(p) for p in sorted(folder.glob('case-*.json'))}


@pytest.mark.parametrize('regime', REGIMES)
@pytest.mark.parametrize('method', METHODS)
def test_interrupted_equals_whole(tiny, ds, sets, tmp_path, monkeypatch, method, regime):
    few = sample(ds.split('test'), 3)
    whole = run(tiny, few, method, tmp_path/'whole', regime, sets).run(progress=False)
    part, real, n = run(tiny, few, method, tmp_path/'part', regime, sets), write_json, [0]
    def stop(path, value):
        if path.name.startswith('case'):
            n[0] += 1
            if n[0] == 2: raise KeyboardInterrupt
        real(path, value)
    with monkeypatch.context() as m:
        m.setattr('kdnb.experiments.runs.write_json', stop)
        if regime != 'batch':
            with pytest.raises(KeyboardInterrupt): part.run(progress=False)
            assert len(part.done()) == 1 and not tiny.edits
    assert results(part.run(progress=False)) == results(whole)
    assert part.folder.name == whole.name and not tiny.edits


def test_a_finished_run_is_not_repeated(tiny, ds, tmp_path, monkeypatch):
    r = run(tiny, sample(ds.split('test'), 2), 'base', tmp_path)
    r.run(progress=False)
    monkeypatch.setattr('kdnb.experiments.runs.evaluate', lambda *a, **k: pytest.fail('evaluated again'))
    r.run(progress=False)


def test_everything_that_matters_changes_the_folder(tiny, tiny_folder, ds, sets, tmp_path):
    from kdnb.models.model import load_lm
    few = sample(ds.split('test'), 2)
    gpt2 = load_lm(str(tiny_folder('gpt2')), device='cpu')
    runs = [
        run(tiny, few, 'distill', tmp_path, sets=sets),
        run(tiny, few, 'distill', tmp_path, sets=sets, loss_on='all_tokens'),
        run(tiny, few, 'distill', tmp_path, sets=sets, seed=1),
        run(tiny, few, 'distill', tmp_path, REGIMES[1], sets),
        run(tiny, sample(ds.split('test'), 3), 'distill', tmp_path, sets=sets),
        run(tiny, few, 'distill', tmp_path),
        run(tiny, few, 'finetune-transfer', tmp_path, sets=sets),
        run(gpt2, few, 'distill', tmp_path, sets=sets),
        run(tiny, few, 'distill', tmp_path, sets=sets, n_specificity=5)]
    assert len({r.folder for r in runs}) == len(runs)
    assert run(tiny, few, 'distill', tmp_path, sets=sets).folder == runs[0].folder


def test_a_sequential_run_reports_each_edit_and_the_end(tiny, ds, sets, tmp_path):
    few = sample(ds.split('test'), 2)
    seq = run(tiny, few, 'distill', tmp_path, 'sequential', sets).run(progress=False)
    stages = [read_json(p)['stage'] for p in sorted(seq.glob('case-*'))]
    assert stages == ['just taught', 'just taught', 'end']
    assert len(collect([seq])) == 1 and collect([seq]).cases[0] == 1


def test_parameters_are_frozen_and_rows_say_what_made_them(tiny, ds, tmp_path):
    r = run(tiny, sample(ds.split('test'), 2), 'base', tmp_path)
    folder = r.run(progress=False)
    p = read_json(folder/'params.json')
    assert p['lm_sha256'] == tiny.sha256 and p['seed'] == 0 and p['versions']['torch']
    assert folder.name.endswith(key(p))
    assert all(read_json(c)['key'] == key(p) for c in r.done())


def test_full_disk_is_one_sentence_and_keeps_what_is_done(tiny, ds, tmp_path, monkeypatch):
    r, real, n = run(tiny, sample(ds.split('test'), 3), 'base', tmp_path), os.replace, [0]
    def full(a, b):
        n[0] += 1
        if n[0] > 2: raise OSError(28, 'No space left on device')
        real(a, b)
    with monkeypatch.context() as m:
        m.setattr(os, "replace", full)
        with pytest.raises(KdnbError, match='No space left on device; completed work is kept'):
            r.run(progress=False)
    assert len(r.done()) == 1 and not list(r.folder.glob('*.tmp'))
    r.run(progress=False)
    assert len(r.done()) == 3


def test_too_little_memory_is_an_error_before_the_work(tiny, ds, tmp_path, monkeypatch):
    monkeypatch.setattr('kdnb.experiments.runs.memory_free', lambda lm: 0.)
    with pytest.raises(KdnbError, match='GiB of memory'):
        run(tiny, sample(ds.split('test'), 2), 'base', tmp_path).run(progress=False)


def test_kill_9_loses_at_most_the_case_in_progress(tiny_folder, tmp_path):
    cmd = [
        str(Path(sys.executable).parent/'kdnb'), 'evaluate', '--lm', str(tiny_folder('llama')),
        '--device', 'cpu', '--method', 'finetune-definition', '--limit', '4',
        '--n-specificity', '4', '-s', 'steps=40', '--out', str(tmp_path/'killed'), '--json']
    p = subprocess.Popen(cmd, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cases = lambda: list((tmp_path/'killed').glob('*finetune*/case-*.json'))
    deadline = time.time() + 120
    while time.time() < deadline and len(cases()) < 2: time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    kept = {c: c.stat().st_mtime_ns for c in cases()}
    assert 2 <= len(kept) <= 4
    done = subprocess.run(cmd, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(c.stat().st_mtime_ns == t for c, t in kept.items())
    whole = subprocess.run(
        [*cmd[:-2], str(tmp_path/'whole'), '--json'], cwd=tmp_path, capture_output=True, text=True)
    a, b = (json.loads(x.stdout.splitlines()[-1]) for x in (done, whole))
    assert a['target'] == b['target'] and a['specificity'] == b['specificity']


@pytest.fixture
def every_step(monkeypatch):
    "Training checkpoints are saved after every step."
    def init(self, path, every=0): vars(self).update(path=Path(path), every=0, share=0, last=0)
    monkeypatch.setattr(TrainingCheckpoint, '__init__', init)


def interrupt(*args, **kwargs): raise KeyboardInterrupt


@pytest.mark.parametrize('settings', (
    {},
    {'trainable': 'all', 'lr': 1e-3},
    {'entities_per_step': 2, 'teacher_top_k': 50},
    {'batch': 'one_by_one', 'trainable': 'feed_forward', 'lr': 1e-3, 'early_stop_loss': 1e-3}))
def test_a_killed_training_continues_from_its_checkpoint(
        tiny, ds, sets, tmp_path, monkeypatch, every_step, settings):
    "The result equals that of an uninterrupted training, number for number."
    import torch
    from kdnb.methods.distill import Distill
    few, how = ds.entities[:4], Distill(**{'steps': 3, 'retain_weight': 1.0, **settings})
    whole = how(tiny, few, sets, seed=1)
    real, count = torch.optim.AdamW.step, []
    def step(self, *a, **k):
        count.append(1)
        if len(count) == 4: raise KeyboardInterrupt
        return real(self, *a, **k)
    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    with pytest.raises(KeyboardInterrupt): how(tiny, few, sets, seed=1, checkpoint=tmp_path/'kept')
    assert (tmp_path/'kept').exists()
    rest = how(tiny, few, sets, seed=1, checkpoint=tmp_path/'kept')
    assert rest.losses == whole.losses and not (tmp_path/'kept').exists()
    assert len(count) < 4 + len(whole.losses) # the first steps were not made again
    for n, t in whole.tensors.items(): assert torch.equal(t, rest.tensors[n]), n
    for n, a in whole.adapter.items():
        assert torch.equal(a.A, rest.adapter[n].A) and torch.equal(a.B, rest.adapter[n].B), n


@pytest.mark.parametrize('settings', ({}, {'trainable': 'all'}))
def test_an_edit_of_a_batch_survives_an_interrupted_evaluation(
        tiny, ds, sets, tmp_path, monkeypatch, settings):
    from kdnb.methods.distill import Distill
    few = sample(ds.split('test'), 3)
    new = lambda folder: run(tiny, few, 'distill', tmp_path/folder, REGIMES[1], sets, **settings)
    whole, part = new('whole').run(progress=False), new('part')
    with monkeypatch.context() as m:
        m.setattr('kdnb.experiments.runs.evaluate', interrupt)
        with pytest.raises(KeyboardInterrupt): part.run(progress=False)
    assert (part.folder/'edit'/'edit.json').exists() and not tiny.edits
    with monkeypatch.context() as m: # and nothing is trained again
        m.setattr(Distill, '__call__', lambda *a, **k: pytest.fail('trained again'))
        again = new('part').run(progress=False)
    assert results(again) == results(whole) and not (again/'edit').exists()


def test_the_checkpoint_of_another_training_is_an_error(tiny, ds, sets, tmp_path, monkeypatch, every_step):
    from kdnb.methods.distill import Distill
    train = lambda **how: Distill(steps=2, **how)(tiny, ds.entities[:2], sets, checkpoint=tmp_path/'kept')
    monkeypatch.setattr('kdnb.methods.training.clip_change', interrupt)
    with pytest.raises(KeyboardInterrupt): train(trainable='feed_forward', max_weight_change=1.)
    with pytest.raises(KdnbError, match='holds another training: remove it'): train()
    (tmp_path/'kept').write_bytes(b'no tensors')
    with pytest.raises(KdnbError, match='is damaged .*: remove it'): train()


def test_evaluation_in_bfloat16_is_another_result(tiny, ds, tmp_path):
    "Answers may differ, so a run evaluated in bfloat16 is not compared with a base model in float32."
    few = sample(ds.split('test'), 2)
    how = dict(n_specificity=6, open_ended=False, folder=tmp_path)
    run = lambda method, dtype: Experiment(tiny, few, method, eval_dtype=dtype, **how)
    runs = [run('base', 'float32'), run('prepend', 'float32'), run('prepend', 'bfloat16')]
    assert len({r.folder for r in runs}) == 3
    for r in runs: r.run(progress=False)
    df = collect([tmp_path])
    is_bfloat16 = [Path(f).name == runs[2].folder.name for f in df.run]
    assert [v is None for v in df.specificity_change] == is_bfloat16
    a, b = ([p['bits'] for c in map(read_json, r.done()) for p in c['target'][0]['probes']] for r in runs[1:])
    assert a != b and a == pytest.approx(b, rel=.1)
    with pytest.raises(KdnbError, match="unknown eval_dtype 'half'"):
        Experiment(tiny, few, 'base', eval_dtype='half', **how)


def test_a_part_of_an_edit_is_measured_as_its_whole(tiny, ds, sets, tmp_path):
    "A strength is measured with the adapter scaled; half of it gives what an edit of half the scale gives."
    few, how = sample(ds.split('test'), 1), dict(sets=sets, harm=True, strengths=(.5,), trainable='lora')
    r = run(tiny, few, 'distill', tmp_path, **how)
    case, = [read_json(p) for p in r.run(progress=False).glob('case-*.json')]
    edit = r.method(tiny, list(few.entities), sets, 0)
    with edit.scaled(.5).on(tiny): want = r.measure(edit, few.entities, r.specificity)
    assert case['parts']['0.5']['target'] == want['target']
    assert case['parts']['0.5']['drift'] == want['drift']
    assert 0 < sum(case['parts']['0.5']['drift']) < sum(case['drift'])
    bits = lambda c: [p['bits'] for t in c['target'] for p in t['probes']]
    assert bits(case['parts']['0.5']) != bits(case)
    two = sample(ds.split('test'), 2)
    together = run(tiny, two, 'distill', tmp_path/'parallel', edits_per_batch=2, **how)
    cases = [read_json(p) for p in together.run(progress=False).glob('case-*.json')]
    assert all(set(c['parts']) == {'0.5'} for c in cases)
    with pytest.raises(KdnbError, match='regime single'): run(tiny, few, 'distill', tmp_path, 'batch', **how)
    with pytest.raises(KdnbError, match='a strength'): run(tiny, few, 'base', tmp_path, strengths=('half',))


def test_a_case_is_done_again_with_another_transfer_set(tiny, ds, sets, tmp_path):
    "With `transfer_id` sets may be written later: the folder is the same, and each case knows its set."
    few = sample(ds.split('test'), 2)
    first, how = sample(few, 1).entities[0], dict(transfer_id='written by tiny')
    r = run(tiny, few, 'distill', tmp_path, sets={first.key: sets[first.key]}, limit=1, **how)
    r.run(progress=False)
    times = {p.name: p.stat().st_mtime_ns for p in r.done()}
    both = run(tiny, few, 'distill', tmp_path, sets=sets, **how)
    assert both.folder == r.folder != run(tiny, few, 'distill', tmp_path, sets=sets).folder
    both.run(progress=False)
    after = {p.name: p.stat().st_mtime_ns for p in both.done()}
    assert len(after) == 2 and times.items() <= after.items() # the first is kept
    changed = replace(sets[first.key], continuations=sets[first.key].continuations[:1])
    again = run(tiny, few, 'distill', tmp_path, sets={**sets, first.key: changed}, **how)
    again.run(progress=False)
    new = {p.name: p.stat().st_mtime_ns for p in again.done()}
    assert len(new) == 2 and all(new[name] != t for name, t in times.items())
    row = read_json(again.plan.path(first))
    assert row['transfer'] == [changed.key]
