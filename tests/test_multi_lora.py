"""Edits trained in parallel are those trained one by one."""
import pytest, torch
from kdnb.edits.multi_lora import MultiLora
from kdnb.methods.parallel import train_parallel
from kdnb.methods.distill import Distill
from kdnb.core.errors import KdnbError
from kdnb.data.dataset import sample
from kdnb.core.files import read_json
from kdnb.experiments.runs import Experiment
from kdnb.methods.finetune import FineTune
from kdnb.models.model import load_lm

HOW = dict(trainable='lora', precision='float32', steps=4, rank=4)


def delta(edit): return {n: a.delta() for n, a in edit.adapter.items()}


DECAY = dict(retain_weight=0, gradient_checkpointing=True, weight_decay_target='base', weight_decay=10.)
METHODS = {
    'distill': Distill(**HOW),
    'early_stop_loss': Distill(**HOW, early_stop_loss=4.5, n_name_swaps=1),
    'finetune': FineTune(**HOW, on='definition'),
    'weight_decay': Distill(**HOW, **DECAY),
    'start_layer': Distill(**HOW, start_layer=.5)}


@pytest.mark.parametrize('kind', ('llama', 'gpt2', 'gpt_neo', 'gpt_neox', 'gemma3', 'qwen3'))
@pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)
def test_edits_in_parallel_are_those_trained_alone(tiny_folder, ds, sets, kind, method):
    lm, few = load_lm(str(tiny_folder(kind)), device='cpu'), ds.entities[:4]
    alone, parallel = [method(lm, [e], sets, 3) for e in few], train_parallel(method, lm, few, sets, 3)
    for a, b in zip(alone, parallel):
        assert a.losses == pytest.approx(b.losses, rel=2e-3)
        assert (a.method, a.entities, a.settings, a.texts) == (b.method, b.entities, b.settings, b.texts)
        x, y = delta(a), delta(b)
        assert x.keys() == y.keys()
        size = sum(t.square().sum() for t in x.values()).sqrt()
        assert sum((x[n] - y[n]).square().sum() for n in x).sqrt() <= .02*size + 1e-6
        with b.on(lm): pass # an edit like any other


def test_a_run_with_edits_in_batches_has_the_same_results(tiny, ds, sets, tmp_path):
    few = sample(ds.split('test'), 5)
    make = lambda folder, **how: Experiment(
        tiny, few, 'distill', transfer=sets, n_specificity=12, folder=tmp_path/folder, **HOW, **how)
    one, two = make('one'), make('two', edits_per_batch=3)
    assert one.folder.name == two.folder.name
    make('two', limit=1).run(progress=False) # the next run continues from it
    one.run(progress=False)
    two.run(progress=False)
    a, b = ({p.name: read_json(p) for p in r.done()} for r in (one, two))
    assert a.keys() == b.keys() and len(a) == 5
    bits = lambda case: [
        r and r['bits'] for r in case['specificity'] + case['other_entities'] + case['target'][0]['probes']]
    for k in a:
        assert a[k]['entities'] == b[k]['entities'] and a[k]['key'] == b[k]['key']
        for x, y in zip(bits(a[k]), bits(b[k])):
            assert (x is None) == (y is None)
            assert x is None or x == pytest.approx(y, abs=.02)
        x, y = a[k]['target'][0], b[k]['target'][0]
        assert x['definition_bpb'] == pytest.approx(y['definition_bpb'], abs=.02)
        assert x['open_ended']['text'] == y['open_ended']['text']


def test_only_adapters_are_trained_in_parallel(tiny, ds, sets, tmp_path):
    run = Experiment(
        tiny, sample(ds, 2), 'distill', transfer=sets, edits_per_batch=2, trainable='all', folder=tmp_path)
    with pytest.raises(KdnbError, match="trainable must be 'lora'"): run.run(progress=False)
    with pytest.raises(KdnbError, match='edits_per_batch is 0'):
        Experiment(tiny, ds, 'distill', edits_per_batch=0)
    edits = [Distill(**HOW)(tiny, [e], sets) for e in ds.entities[:2]]
    before = {n: p.clone() for n, p in tiny.model.named_parameters()}
    with pytest.raises(RuntimeError, match='on purpose'):
        with MultiLora.of(edits).on(tiny): raise RuntimeError('on purpose')
    assert all(torch.equal(p, before[n]) for n, p in tiny.model.named_parameters())
    assert not any('forward' in vars(m) for m in tiny.model.modules())
