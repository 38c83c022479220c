"""On a GPU: what is learned there is what is learned here, to rounding; and bfloat16, attention and memory are those of the GPU."""
import pytest, torch
from test_rome import text # noqa: F401 (a fixture)
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

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='this machine has no GPU that torch can use')
KINDS = ('llama', 'gpt2', 'gpt_neo', 'gemma3')
PLAIN = dict(steps=4, precision='float32')
# a text in front, which ROME has the model write, would be another one there: random numbers are those of the device
METHODS = {'distill': dict(PLAIN), 'distill, all weights': dict(PLAIN, trainable='all'), 'distill, top': dict(PLAIN, teacher_top_k=50), 'distill, above': dict(PLAIN, start_layer=.5), 'distill, recompute': dict(PLAIN, gradient_checkpointing=True), 'distill, compiled': dict(PLAIN, compile=True),
           'finetune-definition': dict(PLAIN, trainable='last_block', max_weight_change=1e-3), 'rome': dict(steps=4, n_contexts=1, layer=1), 'memit': dict(steps=4, n_contexts=1, layers=2, last=1)}


@pytest.fixture
def both(tiny_folder):
    "Function of an architecture's name: the same tiny LM here and on the GPU."
    return lambda kind, **how: [load_lm(str(tiny_folder(kind, 4)), device=d, **how) for d in ('cpu', 'cuda')]


def change(edit): return {n: a.delta().cpu() for n, a in edit.adapter.items()} | {n: t.cpu() for n, t in edit.tensors.items()}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('label', METHODS)
def test_learned_there_is_learned_here(both, ds, sets, text, tmp_path, label, kind):
    name, how = label.partition(',')[0], {**METHODS[label], **({'text': text} if label in ('rome', 'memit') else {})}
    (here, there), e = both(kind), ds.entities[0]
    a, b = (make_method(name, **how)(lm, [e], sets, 3) for lm in (here, there))
    assert a.losses == pytest.approx(b.losses, rel=5e-3, abs=1e-4)
    x, y = change(a), change(b)
    assert x.keys() == y.keys()
    base = {n: p.cpu() for n, p in here.model.named_parameters()}
    far = sum((x[n] - y[n]).square().sum() for n in x).sqrt(); size = sum((x[n] - (base[n] if n in a.tensors else 0)).square().sum() for n in x).sqrt()
    assert far <= .05*size, (far, size)
    before = {n: p.clone() for n, p in there.model.named_parameters()}
    probe = e.probes[0]
    with b.on(there): edited = score_candidates(there, [probe.prompt], [probe.candidates])[0]
    assert all(torch.equal(before[n], p) for n, p in there.model.named_parameters())
    with Edit.load(b.save(tmp_path/'edit')).on(here): again = score_candidates(here, [probe.prompt], [probe.candidates])[0]
    assert again == pytest.approx(edited, abs=.05)


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_of_the_gpu(both, ds, sets, kind):
    here, there = both(kind)
    if not has_fast_bfloat16(there.device): pytest.skip('this GPU does not multiply in bfloat16')
    a, b = (make_method('distill', steps=4)(lm, [ds.entities[0]], sets, 3) for lm in (here, there))
    assert a.losses == pytest.approx(b.losses, rel=.1)
    half = load_lm(here.name, dtype='bfloat16', device='cuda')
    assert make_method('distill', steps=4)(half, [ds.entities[0]], sets, 3).losses == pytest.approx(a.losses, rel=.2)


def test_side_by_side(both, ds, sets):
    here, there = both('llama')
    method = make_method('distill', **PLAIN)
    for a, b in zip(*(train_parallel(method, lm, ds.entities[:3], sets, 3) for lm in (here, there))): assert a.losses == pytest.approx(b.losses, rel=5e-3)


@pytest.mark.parametrize('regime', ('single', 'batch', 'sequential'))
def test_a_run(both, ds, sets, tmp_path, regime):
    rows = []
    for lm in both('llama'):
        r = Experiment(lm, sample(ds.split('test'), 3), 'distill', regime=regime, transfer=sets, n_specificity=12, folder=tmp_path/str(lm.device), eval_dtype='float32', **PLAIN)
        r.run(progress=False); rows.append([read_json(f) for f in r.done()])
    for a, b in zip(*rows):
        for x, y in zip(a['specificity'], b['specificity']): assert (x is None) == (y is None) and (x is None or x['bits'] == pytest.approx(y['bits'], abs=.05))


def test_memory_writing_tracing(both, ds):
    here, there = both('llama')
    assert 0 < memory_peak(there) < memory_free(there)
    assert generate(here, ['The sea'], temperature=0, max_new_tokens=5) == generate(there, ['The sea'], temperature=0, max_new_tokens=5)
    p = 'The baker went to'
    a, b = (trace(lm, p, 'The baker', 'Chile', samples=1) for lm in (here, there))
    assert (a.tokens, a.low, a.high) == (b.tokens, pytest.approx(b.low, rel=1e-3), pytest.approx(b.high, rel=1e-3)) and torch.allclose(a.effects, b.effects.cpu(), atol=1e-4)


def test_a_process_for_a_gpu(tiny_folder, ds, tmp_path):
    import json
    (tmp_path/'sets.jsonl').write_text(json.dumps({'entity': 'Velmora', 'continuations': [{'text': 'Velmora is what people watch.', 'mention': [0, 7]}]}))
    command = ['edit', '--lm', str(tiny_folder('llama', 4)), '--name', 'Velmora', '--definition', 'Velmora is a comedy about two rival bakers.', '--transfer', str(tmp_path/'sets.jsonl'), '-s', 'steps=3', '--out', str(tmp_path/'edit'), '--shards', '1']
    assert launch(1, command) == 0 and len(Edit.load(tmp_path/'edit').losses) == 3
