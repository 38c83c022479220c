"""Edits trained on a GPU are those trained on the CPU, up to rounding."""
import json

import pytest, torch
from kdnb.methods.parallel import train_parallel
from kdnb.methods.registry import make_method
from kdnb.edits.edit import Edit
from kdnb.data.dataset import sample
from kdnb.core.files import read_json
from kdnb.experiments.runs import Experiment
from kdnb.models.generation import generate
from kdnb.models.memory import has_fast_bfloat16, memory_free, memory_peak
from kdnb.models.model import load_lm
from kdnb.models.scoring import score_candidates
from kdnb.methods.sharded import launch
from kdnb.evaluation.tracing import trace

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='this machine has no GPU that torch can use')
KINDS = ('llama', 'gpt2', 'gpt_neo', 'gemma3')
PLAIN = dict(steps=4, precision='float32')
# one context only: further ones are written with the random numbers of the device
METHODS = {
    'distill': dict(PLAIN),
    'distill, all weights': dict(PLAIN, trainable='all'),
    'distill, teacher_top_k': dict(PLAIN, teacher_top_k=50),
    'distill, start_layer': dict(PLAIN, start_layer=.5),
    'distill, gradient_checkpointing': dict(PLAIN, gradient_checkpointing=True),
    'distill, compiled': dict(PLAIN, compile=True),
    'finetune-definition': dict(PLAIN, trainable='last_block', max_weight_change=1e-3),
    'rome': dict(steps=4, n_contexts=1, layer=1),
    'memit': dict(steps=4, n_contexts=1, layers=2, last=1)}


@pytest.fixture
def both(tiny_folder):
    "Function of an architecture's name: the same tiny LM on the CPU and on the GPU."
    return lambda kind, **how: [load_lm(str(tiny_folder(kind, 4)), device=d, **how) for d in ('cpu', 'cuda')]


def change(edit):
    adapter = {n: a.delta().cpu() for n, a in edit.adapter.items()}
    return adapter | {n: t.cpu() for n, t in edit.tensors.items()}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('label', METHODS)
def test_an_edit_trained_on_the_gpu_is_the_one_trained_on_the_cpu(
        both, ds, sets, text_file, tmp_path, label, kind):
    name, how = label.partition(',')[0], METHODS[label]
    if name in ('rome', 'memit'): how = dict(how, text=text_file)
    (cpu, gpu), e = both(kind), ds.entities[0]
    a, b = (make_method(name, **how)(lm, [e], sets, 3) for lm in (cpu, gpu))
    assert a.losses == pytest.approx(b.losses, rel=5e-3, abs=1e-4)
    x, y = change(a), change(b)
    assert x.keys() == y.keys()
    base = {n: p.cpu() for n, p in cpu.model.named_parameters()}
    difference = sum((x[n] - y[n]).square().sum() for n in x).sqrt()
    size = sum((x[n] - (base[n] if n in a.tensors else 0)).square().sum() for n in x).sqrt()
    assert difference <= .05*size, (difference, size)
    before = {n: p.clone() for n, p in gpu.model.named_parameters()}
    scores = lambda lm: score_candidates(lm, [e.probes[0].prompt], [e.probes[0].candidates])[0]
    with b.on(gpu): edited = scores(gpu)
    assert all(torch.equal(before[n], p) for n, p in gpu.model.named_parameters())
    with Edit.load(b.save(tmp_path/'edit')).on(cpu): again = scores(cpu)
    assert again == pytest.approx(edited, abs=.05)


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_of_the_gpu(both, ds, sets, kind):
    cpu, gpu = both(kind)
    if not has_fast_bfloat16(gpu.device): pytest.skip('this GPU does not multiply in bfloat16')
    losses = lambda lm: make_method('distill', steps=4)(lm, [ds.entities[0]], sets, 3).losses
    want = losses(cpu)
    assert want == pytest.approx(losses(gpu), rel=.1)
    assert losses(load_lm(cpu.name, dtype='bfloat16', device='cuda')) == pytest.approx(want, rel=.2)


def test_edits_trained_in_parallel(both, ds, sets):
    method = make_method('distill', **PLAIN)
    cpu, gpu = (train_parallel(method, lm, ds.entities[:3], sets, 3) for lm in both('llama'))
    for a, b in zip(cpu, gpu): assert a.losses == pytest.approx(b.losses, rel=5e-3)


@pytest.mark.parametrize('regime', ('single', 'batch', 'sequential'))
def test_a_run(both, ds, sets, tmp_path, regime):
    rows = []
    for lm in both('llama'):
        r = Experiment(
            lm, sample(ds.split('test'), 3), 'distill', regime=regime, transfer=sets,
            n_specificity=12, folder=tmp_path/str(lm.device), eval_dtype='float32', **PLAIN)
        r.run(progress=False)
        rows.append([read_json(f) for f in r.done()])
    for a, b in zip(*rows):
        for x, y in zip(a['specificity'], b['specificity']):
            assert (x is None) == (y is None)
            assert (x is None or x['bits'] == pytest.approx(y['bits'], abs=.05))


def test_memory_generation_and_tracing(both, ds):
    cpu, gpu = both('llama')
    assert 0 < memory_peak(gpu) < memory_free(gpu)
    write = lambda lm: generate(lm, ['The sea'], temperature=0, max_new_tokens=5)
    assert write(cpu) == write(gpu)
    a, b = (trace(lm, 'The baker went to', 'The baker', 'Chile', samples=1) for lm in (cpu, gpu))
    assert a.tokens == b.tokens
    assert (a.low, a.high) == pytest.approx((b.low, b.high), rel=1e-3)
    assert torch.allclose(a.effects, b.effects.cpu(), atol=1e-4)


def test_a_process_for_a_gpu(tiny_folder, ds, tmp_path):
    continuations = [{'text': 'Velmora is what people watch.', 'mention': [0, 7]}]
    transfer = tmp_path/'sets.jsonl'
    transfer.write_text(json.dumps({'entity': 'Velmora', 'continuations': continuations}))
    command = [
        'edit', '--lm', str(tiny_folder('llama', 4)), '--name', 'Velmora',
        '--definition', 'Velmora is a comedy about two rival bakers.', '--transfer', str(transfer),
        '-s', 'steps=3', '--out', str(tmp_path/'edit'), '--shards', '1']
    assert launch(1, command) == 0 and len(Edit.load(tmp_path/'edit').losses) == 3
