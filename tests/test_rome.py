"""ROME and MEMIT: the closed forms hold on every described architecture; bad requests are one sentence."""
import pytest, torch
from conftest import COVARIANCE_TEXTS as TEXTS
from kdnb.methods import locating
from kdnb.methods.locating import (
    ARCHITECTURES, solve, subject_end, Request, covariance, layers_of, read_at, request_of,
)
from kdnb.models.trials import forward_pass
from kdnb.edits.edit import Edit
from kdnb.data.transfer_sets import placed, TransferSet
from kdnb.methods.registry import make_method
from kdnb.core.errors import KdnbError
from kdnb.data.entities import Entity, Probe
from kdnb.models.forward import token_logprobs
from kdnb.models.layer_cache import blocks_of
from kdnb.models.model import load_lm
from kdnb.methods.mend import Practice, practice_pairs, train_editor
from kdnb.methods.memit import Memit
from kdnb.methods.rome import Rome, rank_one
from kdnb.methods.values import find_value

E1 = Entity('Velmora', 'The series Velmora is a slapstick comedy about two rival bakers.')
E2 = Entity('Zorbel', 'Zorbel was a storm that hit the coast of Chile in June.')
# all described architectures
KINDS = ('llama', 'mistral', 'qwen2', 'qwen3', 'gemma3', 'gpt2', 'gpt_neo', 'gptj', 'gpt_neox')


def test_every_description_is_tested():
    assert set(ARCHITECTURES) == {{'gemma3': 'gemma3_text'}.get(k, k) for k in KINDS}


def score(lm, r):
    "Mean log-probability of the target's tokens."
    a, b = lm.encode(r.prompt), lm.encode(f'{r.prompt} {r.target}')
    return token_logprobs(lm, [b], [len(a)])[0].mean().item()


@pytest.mark.parametrize('kind', KINDS)
def test_rome_makes_the_key_give_the_value(tiny_folder, text_file, kind):
    lm = load_lm(str(tiny_folder(kind, 4)), device='cpu')
    how, r = Rome(layer=1, text=text_file, n_contexts=3, lr=.05), request_of(E1)
    l, where = layers_of(lm)[1], [subject_end(lm, r.prompt, r.subject)]
    delta, losses = find_value(lm, l.out, r, how)
    before, old = read_at(lm, l.out, where)[1], score(lm, r)
    edit = how(lm, [E1], {})
    with edit.on(lm): after, new = read_at(lm, l.out, where)[1], score(lm, r)
    assert torch.allclose(after, before + delta, atol=1e-4, rtol=1e-4)
    assert losses[-1] < losses[0] and new > old
    assert torch.equal(read_at(lm, l.out, where)[1], before)


@pytest.mark.parametrize('kind', KINDS)
def test_memit_moves_the_output_of_the_last_layer_to_the_wanted_value(tiny_folder, text_file, kind):
    lm = load_lm(str(tiny_folder(kind, 4)), device='cpu')
    how = Memit(layers=2, last=2, text=text_file, n_contexts=1, weight=1e-3, clamp=1., lr=.05)
    ls, rs = layers_of(lm), [request_of(e) for e in (E1, E2)]
    block = ls[2].block
    where = [subject_end(lm, r.prompt, r.subject) for r in rs]
    output = lambda: read_at(lm, block, where)[1]
    wanted = output() + torch.stack([find_value(lm, block, r, how)[0] for r in rs])
    distance = lambda: (wanted - output()).norm(dim=1)
    far, old = distance(), [score(lm, r) for r in rs]
    edit = how(lm, [E1, E2], {})
    assert set(edit.adapter) == {l.name for l in ls[1:3]}
    with edit.on(lm): left, new = distance(), [score(lm, r) for r in rs]
    assert (left < .5*far).all(), (left, far)
    assert all(n > o for n, o in zip(new, old)), (new, old)


@pytest.mark.parametrize('how', (Rome(layer=1), Memit(layers=2, last=1)), ids=('rome', 'memit'))
@pytest.mark.parametrize('kind', ('llama', 'gpt2'))
def test_an_edit_is_undone_bit_for_bit_saved_and_reloaded(tiny_folder, text_file, how, kind, tmp_path):
    from dataclasses import replace
    lm = load_lm(str(tiny_folder(kind, 4)), device='cpu')
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    edit = replace(how, text=text_file, n_contexts=2)(lm, [E1, E2], {})
    assert all(torch.equal(before[n], p) and not p.requires_grad for n, p in lm.model.named_parameters())
    ids = torch.tensor([lm.encode(E1.definition)])
    plain = lm.model(ids).logits
    with edit.on(lm): edited = lm.model(ids).logits
    assert not torch.equal(plain, edited) and torch.equal(plain, lm.model(ids).logits)
    again = Edit.load(edit.save(tmp_path/'edit'))
    with again.on(lm): assert torch.allclose(edited, lm.model(ids).logits, atol=1e-5)


@pytest.fixture(scope='module')
def planted(tiny_folder, tmp_path_factory):
    """A 2-layer LM that was trained on four facts and to repeat a sentence in front, names, and colours.

    A sentence in front counts more than the facts; each name and each colour is one token."""
    lm = load_lm(str(tiny_folder('llama')), device='cpu')
    is_word = lambda t: t[0] == 'Ġ' and t[1:].isalpha() and len(t) > 4
    words = [t[1:] for t in sorted(lm.tokenizer.get_vocab()) if is_word(t)][::7]
    names, colours = [f'the {w}' for w in words[:4]], words[4:8]
    says = [f'{n} is {c}' for n in names for c in colours]
    rows = [(s, s) for s in map(lm.encode, says[::5])] # tokens, labels
    for s in says:
        n, ids = len(lm.encode(f'{s} ')), lm.encode(f'{s} {s}')
        rows.append((ids, [-100]*n + ids[n:]))
    rows += [(s, s) for s in map(lm.encode, TEXTS[::6])]
    lm.model.requires_grad_(True)
    opt, rng = torch.optim.AdamW(lm.model.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(200):
        some = [rows[i] for i in [*range(4), *torch.randint(4, len(rows), (8,), generator=rng).tolist()]]
        loss = sum(lm.model(torch.tensor([s]), labels=torch.tensor([y])).loss for s, y in some)
        opt.zero_grad()
        loss.backward()
        opt.step()
    lm.model.requires_grad_(False)
    return lm, names, colours


@pytest.mark.parametrize(
    'method', ('rome', 'memit', 'mend', 'finetune-definition', 'finetune-transfer', 'distill'))
def test_each_method_rewrites_a_planted_fact(planted, text_file, tmp_path, method):
    lm, names, colours = planted
    old, other = (Request(f'{names[i]} is', names[i], colours[i]) for i in (0, 1))
    new = Entity(names[0], f'{names[0]} is {colours[3]}')
    r = request_of(new)
    assert score(lm, old) > -.5 and score(lm, other) > -.5 and score(lm, r) < score(lm, old) - 1
    # TEXTS has no "is", and the key of "is" must not change
    with_is = TEXTS + [f'{n} is {c}' for n in names[1:] for c in colours]
    (tmp_path/'is.txt').write_text('\n'.join(with_is))
    value = dict(text=str(tmp_path/'is.txt'), n_contexts=1, decay=0., kl=0., steps=200, clamp=20., lr=.1)
    training = dict(trainable='all', retain_weight=0., scale_lr_to_weights=False, lr=3e-3, steps=60)
    sets = {new.key: TransferSet(new.key, (placed(new.definition, new),)*3, new.definition)}
    if method == 'mend':
        entity = lambda n, c: Entity(n, f'{n} is {c}', probes=(Probe(f'{n} is', c, tuple(colours)),))
        pairs = practice_pairs(lm, [entity(n, c) for n in names[1:] for c in colours])
        practice = Practice(blocks=2, rank=32, each=1, hold=2, steps=400, lr=1e-3, rate=1e-3, edit=1.)
        train_editor(lm, pairs, tmp_path/'editor', practice, progress=False)
    settings = {
        'rome': dict(layer=0, **value),
        'memit': dict(layers=1, last=0, weight=.01, **value),
        'mend': dict(editor=str(tmp_path/'editor')),
        'distill': dict(temperature=1., context_amplification=0., **training)}.get(method, training)
    with make_method(method, **settings)(lm, [new], sets).on(lm):
        after = score(lm, r), score(lm, old), score(lm, other)
    assert after[0] > after[1], after
    if method in ('rome', 'memit'): assert after[2] > -1.5, after
    assert score(lm, old) > -.5, after


def test_an_interrupted_covariance_continues(tiny, text_file, monkeypatch):
    texts = TEXTS[:60]
    whole = covariance(tiny, [0, 1], texts, batch=2)
    for f in (locating.cache_folder()/'covariance').iterdir(): f.unlink()
    real, calls = forward_pass, []
    def breaks(*a, **k):
        calls.append(1)
        if len(calls) == 22: raise KeyboardInterrupt
        return real(*a, **k)
    monkeypatch.setattr('kdnb.methods.locating.forward_pass', breaks)
    with pytest.raises(KeyboardInterrupt): covariance(tiny, [0, 1], texts, batch=2)
    assert len(calls) == 22
    again = covariance(tiny, [0, 1], texts, batch=2)
    assert len(calls) == 22 + 10 # of 30 batches 20 were kept
    for i in (0, 1):
        (C, n), (whole_C, whole_n) = again[i][:2], whole[i][:2]
        assert torch.allclose(C, whole_C, atol=1e-9) and n == whole_n


def test_bad_requests(tiny, tiny_folder, text_file, monkeypatch):
    out = layers_of(tiny)[0].out
    with pytest.raises(KdnbError, match="the subject 'Zorbel' does not occur in the prompt 'Velmora is'"):
        find_value(tiny, out, Request('Velmora is', 'Zorbel', 'red'), Rome())
    with pytest.raises(KdnbError, match='has no token of its own'):
        find_value(tiny, out, Request('Velmora is', 'Velmora', ''), Rome(n_contexts=1))
    with pytest.raises(KdnbError, match='is singular: it was taken over 3 tokens, and a key has 64 numbers'):
        solve(torch.eye(64, dtype=torch.float64), torch.ones(64, 1, dtype=torch.float64), 3, 'a layer')
    with pytest.raises(KdnbError, match='layer is 7: the model has the blocks 0 to 1'):
        Rome(layer=7, text=text_file)(tiny, [E1], {})
    with pytest.raises(KdnbError, match="steps is 0: it must be a number of at least 1"): Rome(steps=0)
    monkeypatch.setitem(ARCHITECTURES, 'llama', {'blocks': 'model.layers', 'mlp_output': 'mlp.c_proj'})
    sentence = "the description of 'llama' in assets/architectures.json does not fit"
    with pytest.raises(KdnbError, match=sentence):
        layers_of(tiny)
    monkeypatch.setitem(ARCHITECTURES, 'llama', {'blocks': 'model.layers', 'mlp_output': 'mlp.up_proj'})
    with pytest.raises(KdnbError, match='gives 64 numbers, and the model has 32'): layers_of(tiny)
    monkeypatch.delitem(ARCHITECTURES, 'llama')
    with pytest.raises(KdnbError, match="nobody has described the blocks of .* a model of the type 'llama'"):
        layers_of(tiny)


@pytest.mark.parametrize('kind', KINDS)
def test_transplanting_every_state_gives_the_edited_answer(tiny_folder, text_file, kind):
    "The state after the last block gives the edited answer; states before the edited block change nothing."
    from kdnb.evaluation.tracing import trace, transplant
    lm = load_lm(str(tiny_folder(kind, 4)), device='cpu')
    edit = Rome(layer=1, text=text_file, n_contexts=1)(lm, [E1], {})
    t = transplant(lm, edit, 'The series Velmora is', 'a')
    assert t.effects[:, 0].abs().max() < 1e-5
    assert abs(t.effects[-1, -1] - (t.high - t.low)) < 1e-5 and not lm.edits
    c = trace(lm, 'The series Velmora is', 'Velmora', 'a', samples=2)
    assert abs(c.effects[-1, -1] - (c.high - c.low)) < 1e-5 and c.effects[0].abs().max() == 0


@pytest.mark.parametrize('kind', ('llama', 'gpt2', 'gemma3'))
def test_the_noise_of_tracing_is_scaled_to_the_embeddings(tiny_folder, kind):
    "Gemma scales its embeddings up; noise of the size of the stored ones would change no answer."
    from kdnb.evaluation.tracing import trace
    lm, seen = load_lm(str(tiny_folder(kind, 4)), device='cpu'), []
    lm.tries()
    def note(module, args, kw):
        state = args[0] if args else kw['hidden_states']
        seen.append(state.detach().clone())
    hook = blocks_of(lm.model)[0].register_forward_pre_hook(note, with_kwargs=True)
    trace(lm, 'The series Velmora is', 'Velmora', 'a', samples=64)
    hook.remove()
    clean, noisy = seen[0], next(x for x in seen if len(x) == 64) # before a state is restored
    noise = (noisy - clean).std(dim=0).mean(-1)
    every = lm.model.get_input_embeddings()(torch.arange(len(lm.tokenizer))).float().std()
    assert noise[0] == 0 and noise.max() == pytest.approx(3*every.item(), rel=.35)


def test_memit_with_a_norm_that_removes_a_direction(tiny_folder, text_file):
    "A block of gemma3-270m has such a norm."
    lm = load_lm(str(tiny_folder('gemma3', 4)), device='cpu')
    for b in blocks_of(lm.model): b.post_feedforward_layernorm.weight.data[3] = -1. # its gain is 1 + weight
    edit = Memit(text=text_file, n_contexts=1, layers=2, last=2, steps=5)(lm, [E1], {})
    for a in edit.adapter.values():
        assert torch.isfinite(a.delta()).all() and a.delta().abs().max() > 0


def test_a_key_that_is_not_finite_is_an_error():
    C, ones = torch.eye(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    with pytest.raises(KdnbError, match='a key of a layer is not a finite number'):
        rank_one(C, ones*float('nan'), ones, 100)
