"""Invariants of the loss, the positions, the training loop and the edit."""

import math
from dataclasses import replace
import pytest, torch
from kdnb.methods.memory import memory_of_training
from kdnb.methods.distill import spread_over_prompts
from kdnb.methods.losses import LossInParts, retention_loss, soften
from kdnb.methods.parameters import TRAINABLE, trainable_parameters, upper
from kdnb.methods.retention import cache_teacher_topk, prepare, retention_batches
from kdnb.methods.training import train
from kdnb.models.layer_cache import blocks_of, states_below
from kdnb.methods.config import TrainingConfig
from kdnb.methods.distill import Distill
from kdnb.methods.examples import add_teacher_logits, example
from kdnb.methods.losses import kl_loss
from kdnb.edits.edit import Edit
from kdnb.core.errors import KdnbError
from kdnb.data.entities import Entity
from kdnb.methods.finetune import FineTune
from kdnb.models.forward import logits_at
from kdnb.models.model import load_lm
from kdnb.core.text import find_mention
from kdnb.data.transfer_sets import Continuation, TransferSet, shipped_transfer_sets

ENTITY = Entity(
    'Velmora Junction', 'Velmora Junction is a comedy about two rival bakers in a small town.', ('Velmora',))
TEXTS = [
    'Velmora Junction is what people in the town watch.', 'Last week Velmora was about a cake.',
    "In the evening Velmora Junction's bakers sing."]
CONTS = tuple(Continuation(t, find_mention(t, ENTITY.names)) for t in TEXTS)
SETS = {ENTITY.name: TransferSet(ENTITY.name, CONTS)}
FAST = dict(lr=3e-3, steps=8)


def weights(lm): return {n: p.detach().clone() for n, p in lm.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def logits(lm): return logits_at(lm, [lm.encode('Velmora Junction is a show')], [[1, 3]]).detach()


def test_kl_is_zero_for_identical_and_positive_otherwise():
    a, b = torch.randn(5, 11), torch.randn(5, 11)
    for t in (.5, 1., 2.): assert abs(kl_loss(a, a, t)) < 1e-6 < kl_loss(a, b, t)


def test_kl_direction_on_two_tokens():
    half, quarter = torch.tensor([[.5, .5]]).log(), torch.tensor([[.25, .75]]).log()
    want = .5*math.log(2) + .5*math.log(2/3)
    assert kl_loss(half, quarter, 1.).item() == pytest.approx(want, abs=1e-6)
    assert kl_loss(half, quarter, 1.) != kl_loss(quarter, half, 1.)


def test_kl_temperature_keeps_the_size_of_the_gradient():
    a, b = torch.randn(50, 11)*.01, (torch.randn(50, 11)*.01).requires_grad_()
    g = [torch.autograd.grad(kl_loss(a, b, t), b)[0].norm().item() for t in (1., 4.)]
    assert g[0] == pytest.approx(g[1], rel=.05)


def test_a_fully_masked_row_is_not_nan():
    s = torch.zeros(0, 7, requires_grad=True)
    loss = kl_loss(torch.zeros(0, 7), s)
    loss.backward()
    assert loss.item() == 0 and not s.grad.isnan().any()


def test_gradient_flows_to_the_student_only(tiny):
    for p in tiny.model.parameters(): p.requires_grad_(True)
    x = [example(tiny, c, ENTITY.definition) for c in CONTS]
    add_teacher_logits(tiny, x)
    assert all(not e.teacher.requires_grad for e in x)


def test_an_exaggerating_teacher_moves_away_from_the_student(tiny):
    plain, strong = ([example(tiny, c, ENTITY.definition) for c in CONTS] for _ in range(2))
    add_teacher_logits(tiny, plain)
    add_teacher_logits(tiny, strong, context_amplification=.5)
    without = logits_at(tiny, [x.ids for x in plain], [x.positions for x in plain])
    want = torch.cat([x.teacher for x in plain])*1.5 - .5*without
    assert torch.allclose(torch.cat([x.teacher for x in strong]), want, atol=1e-4)
    assert not torch.allclose(want, torch.cat([x.teacher for x in plain]), atol=1e-2)
    losses = lambda a: Distill(context_amplification=a, **FAST)(tiny, [ENTITY], SETS).losses
    assert losses(0) != losses(1)


def test_positions_are_those_after_the_mention(tiny):
    for c in CONTS:
        x = example(tiny, c, ENTITY.definition)
        assert tiny.tokenizer.decode(x.targets) == c.text[c.mention[1]:]
        assert x.targets == [x.ids[p+1] for p in x.positions]
        assert x.targets == [x.teacher_ids[p+1] for p in x.teacher_positions]


def test_a_continuation_with_nothing_after_the_mention_contributes_nothing(tiny):
    c = Continuation('They like Velmora', (10, 17))
    assert example(tiny, c, ENTITY.definition).positions == []
    assert example(tiny, c, ENTITY.definition, 'all_tokens').positions != []


def test_padding_contributes_nothing(tiny):
    xs = [example(tiny, c, ENTITY.definition) for c in CONTS]
    add_teacher_logits(tiny, xs)
    for x in xs:
        alone = example(tiny, CONTS[xs.index(x)], ENTITY.definition)
        add_teacher_logits(tiny, [alone])
        assert torch.allclose(x.teacher, alone.teacher, atol=1e-4)


def test_batch_gradient_equals_one_by_one(tiny):
    xs = [example(tiny, c, ENTITY.definition) for c in CONTS]
    add_teacher_logits(tiny, xs)
    how, n = Distill(), sum(len(x.positions) for x in xs)
    for x in xs: x.teacher = soften(x.teacher, how.temperature)
    def grads(batches):
        tiny.model.requires_grad_(True)
        tiny.model.zero_grad()
        for b in batches:
            at = [x.positions for x in b]
            loss = how.loss(b, logits_at(tiny, [x.ids for x in b], at))
            (loss*sum(map(len, at))/n).backward()
        return {k: p.grad.clone() for k, p in tiny.model.named_parameters() if p.grad is not None}
    one, all_ = grads([[x] for x in xs]), grads([xs])
    for k in all_: assert torch.allclose(one[k], all_[k], atol=1e-6), k


METHODS = [
    Distill(**FAST),
    Distill(**FAST, batch='one_by_one'),
    Distill(**FAST, loss_on='all_tokens'),
    Distill(**FAST, trainable='all'),
    Distill(**FAST, trainable='last_block'),
    Distill(**FAST, trainable='lora'),
    Distill(**FAST, batch_size=2),
    FineTune(**FAST),
    FineTune(**FAST, on='transfer_set'),
    FineTune(**FAST, trainable='lora')]


@pytest.mark.parametrize('how', METHODS, ids=str)
def test_the_base_stays_the_edit_works_and_undo_is_bit_for_bit(tiny, how, tmp_path):
    before, modules = weights(tiny), [n for n, _ in tiny.model.named_modules()]
    edit = how(tiny, [ENTITY], SETS)
    assert same(before, weights(tiny)) and modules == [n for n, _ in tiny.model.named_modules()]
    assert not any(p.requires_grad or p.grad is not None for p in tiny.model.parameters())
    plain = logits(tiny)
    with edit.on(tiny): edited = logits(tiny)
    assert not torch.equal(plain, edited) and torch.equal(plain, logits(tiny))
    assert same(before, weights(tiny))
    again = Edit.load(edit.save(tmp_path/'edit'))
    with again.on(tiny): assert torch.equal(edited, logits(tiny))
    assert edit.losses[-1] < edit.losses[0] or how.batch == 'one_by_one'


def test_weights_stay_within_their_limit(tiny):
    before = weights(tiny)
    tune = lambda **k: FineTune(steps=8, lr=1e-2, retain_weight=0, **k)(tiny, [ENTITY], SETS)
    change = lambda edit: max((t - before[n]).abs().max().item() for n, t in edit.tensors.items())
    assert change(tune(max_weight_change=1e-3)) <= 1e-3*1.001 < change(tune())
    with pytest.raises(KdnbError, match="max_weight_change is 1.0 and trainable 'lora'"):
        FineTune(max_weight_change=1., trainable='lora')


def test_one_feed_forward_is_one(tiny):
    names = set(FineTune(**FAST, trainable='one_feed_forward')(tiny, [ENTITY], SETS).tensors)
    assert names and all('layers.0.mlp' in n for n in names) # the block at a third of the depth


@pytest.mark.parametrize('kind', ('llama', 'gpt2', 'gpt_neo', 'gpt_neox', 'gemma3', 'qwen3'))
@pytest.mark.parametrize('trainable', TRAINABLE)
def test_every_architecture_trains_every_part(tiny_folder, kind, trainable):
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    plain = logits(lm)
    edit = Distill(**FAST, trainable=trainable)(lm, [ENTITY], SETS)
    with edit.on(lm): assert not torch.equal(plain, logits(lm))
    assert torch.equal(plain, logits(lm)) and edit.losses[-1] < edit.losses[0]


@pytest.mark.parametrize('kind', ('llama', 'gpt2'))
def test_a_lora_edit_is_what_peft_computes_from_the_saved_folder(tiny_folder, kind, tmp_path):
    from peft import PeftModel
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    edit = Distill(**FAST, trainable='lora')(lm, [ENTITY], SETS)
    with edit.on(lm): want = logits(lm)
    edit.save(tmp_path/'edit')
    lm.model = PeftModel.from_pretrained(lm.model, tmp_path/'edit')
    ids = torch.tensor([lm.encode('Velmora Junction is a show')])
    with torch.no_grad(): got = lm.model(input_ids=ids).logits[0, [1, 3]]
    assert torch.allclose(got, want, atol=1e-4)


def test_the_embeddings_stay_when_they_do_not_train(tiny):
    edit = Distill(**FAST, trainable='no_embeddings')(tiny, [ENTITY], SETS)
    assert not any('embed' in n or 'lm_head' in n for n in edit.tensors)
    assert any('embed' in n for n in Distill(**FAST, trainable='all')(tiny, [ENTITY], SETS).tensors)


@pytest.mark.parametrize('kind', ('llama', 'gpt2', 'gpt_neo', 'gpt_neox', 'gemma3', 'qwen3'))
def test_feed_forward_is_the_mlp_matrices_in_every_architecture(tiny_folder, kind):
    model = load_lm(str(tiny_folder(kind)), device='cpu').model
    mine = trainable_parameters(model, 'feed_forward')
    matrices = {n for n, p in model.named_parameters() if p.ndim > 1}
    assert set(mine) == {n for n in matrices if '.mlp.' in n}, sorted(mine) # all six name it mlp
    assert set(trainable_parameters(model, 'upper_feed_forward')) <= set(mine)


def test_the_retention_loss_is_the_kl_from_the_base_model_with_the_tail_as_one_token():
    torch.manual_seed(0)
    base, now = torch.randn(4, 50), torch.randn(4, 50)
    p, q = base.softmax(-1), now.softmax(-1)
    want = 0.
    for i in range(4): # one position at a time, from the definition
        top = p[i].topk(10).indices
        rest = torch.ones(50, dtype=bool)
        rest[top] = False
        p_rest, q_rest = p[i, rest].sum(), q[i, rest].sum()
        want += (p[i, top]*(p[i, top]/q[i, top]).log()).sum() + p_rest*(p_rest/q_rest).log()
    kept = base.log_softmax(-1).topk(10)
    got = retention_loss([(kept.values[:1], kept.indices[:1]), (kept.values[1:], kept.indices[1:])], now)
    assert torch.allclose(got, want/4, atol=1e-5)


OTHER = Entity('Quorble Festival', 'Quorble Festival is a festival of soup in the mountains.', ('Quorble',))
OTHER_TEXTS = 'Quorble Festival is full of soup.', 'Quorble Festival begins in the mountains.'
BOTH = {**SETS, OTHER.name: TransferSet(OTHER.name, tuple(Continuation(t, (0, 16)) for t in OTHER_TEXTS))}


@pytest.mark.parametrize('start_layer', (0., .5))
@pytest.mark.parametrize('precision', ('float32', 'bfloat16'))
def test_the_base_teacher_gives_the_logits_from_before_all_edits(tiny, monkeypatch, start_layer, precision):
    """Teacher, retention targets and name swaps come from the model without earlier edits.

    The student is the model with them."""
    how = Distill(
        steps=3, start_layer=start_layer, retain_batch_size=2, n_name_swaps=1, n_continuations=2,
        teacher='base', precision=precision)
    seen = []
    def noted(lm, how, groups, *a):
        seen.append((groups, retention_batches(lm, how, 0, 3)))
        return train(lm, how, groups, *a)
    monkeypatch.setattr('kdnb.methods.distill.train', noted)
    before, first = weights(tiny), how(tiny, [ENTITY], BOTH)
    for lm_edits in ((), (first,)):
        for e in lm_edits: e.apply(tiny)
        with_it = weights(tiny)
        second = how(tiny, [OTHER], BOTH)
        assert same(weights(tiny), with_it) and second.after == tuple(e.id for e in lm_edits)
        assert tiny.edits == list(lm_edits)
        for e in lm_edits: e.undo(tiny)
    assert same(weights(tiny), before)
    (alone, neutral), (after, neutral2) = seen[1:]
    atol = .05 if precision == 'bfloat16' else 1e-5
    same_teacher = lambda x, y: torch.allclose(x.teacher[0], y.teacher[0], atol=atol)
    for x, y in zip(alone[0], after[0]):
        assert x.role == y.role and same_teacher(x, y)
        assert x.state is None or torch.allclose(x.state, y.state, atol=atol)
    for _ in range(3):
        for x, y in zip(neutral(), neutral2()): assert same_teacher(x, y)
    with first.on(tiny): replace(how, teacher='current')(tiny, [OTHER], BOTH)
    moved = seen[-1][0][0]
    assert not all(same_teacher(x, y) for x, y in zip(alone[0], moved))
    with pytest.raises(KdnbError, match="unknown teacher 'student'"): Distill(teacher='student')


def test_only_the_neutral_texts_that_a_training_reads_get_teacher_logits(tiny, monkeypatch):
    asked = []
    def noted(lm, xs, use_bf16):
        asked.append(len(xs))
        return cache_teacher_topk(lm, xs, use_bf16)
    monkeypatch.setattr('kdnb.methods.retention.cache_teacher_topk', noted)
    two, three = (Distill(steps=n, retain_batch_size=2, n_continuations=2) for n in (2, 3))
    tiny.retention_pool = None
    edits = [m(tiny, [ENTITY], SETS) for m in (two, two, three, two)]
    counts = [n for n in asked if n]
    assert len(counts) == 3 and max(counts) <= 6 # the second time they are cached
    assert edits[0].losses == edits[1].losses == edits[3].losses
    assert edits[0].losses[:1] == pytest.approx(edits[2].losses[:1])


def test_ctrl_c_while_training_leaves_the_model_as_it_was(tiny):
    before = weights(tiny)
    def stop(batch, logits): raise KeyboardInterrupt
    for trainable in TRAINABLE:
        groups = [[example(tiny, c, ENTITY.definition) for c in CONTS]]
        with pytest.raises(KeyboardInterrupt): train(tiny, TrainingConfig(trainable=trainable), groups, stop)
        assert same(before, weights(tiny)) and not any(p.requires_grad for p in tiny.model.parameters())


def test_the_same_seed_gives_the_same_edit(tiny):
    for how in (Distill(**FAST, trainable='lora'), Distill(**FAST, batch_size=1)):
        a, b, c = (how(tiny, [ENTITY], SETS, seed) for seed in (1, 1, 2))
        assert a.losses == b.losses != c.losses


def test_edits_stack_and_are_undone_in_reverse_order(tiny):
    plain = logits(tiny)
    a = Distill(**FAST)(tiny, [ENTITY], SETS).apply(tiny)
    one = logits(tiny)
    b = Distill(**FAST, trainable='lora')(tiny, [ENTITY], SETS).apply(tiny)
    with pytest.raises(KdnbError, match='undo that one first'): a.undo(tiny)
    b.undo(tiny)
    assert torch.equal(one, logits(tiny))
    with pytest.raises(KdnbError, match='apply the same ones first'):
        a.undo(tiny)
        b.apply(tiny)
    assert torch.equal(plain, logits(tiny))


def test_several_entities_train_one_edit(tiny):
    other = Entity('Brask', 'Brask is a bridge over a river.')
    t = 'Brask is where they fish in the evening.'
    sets = {**SETS, 'Brask': TransferSet('Brask', (Continuation(t, (0, 5)),))}
    edit = Distill(**FAST)(tiny, [ENTITY, other], sets)
    assert len(edit.losses) == 16 and edit.entities == ('Velmora Junction', 'Brask')


@pytest.mark.parametrize(
    'settings', (dict(), dict(teacher_top_k=256, start_layer=.6, n_name_swaps=1)), ids=str)
def test_the_estimate_covers_what_is_cached_per_entity(smollm2, ds, settings):
    how = Distill(**settings, n_continuations=6, batch_size=2, entities_per_step=2, steps=1)
    entities = ds.entities[:3]
    groups, _ = how.groups(smollm2, entities, shipped_transfer_sets())
    prepare(smollm2, how, groups, 0, 2)
    cached = []
    for x in sum(groups, []):
        cached += [x.state, *(x.teacher if isinstance(x.teacher, tuple) else [x.teacher])]
    # a view keeps its whole storage
    storages = [t.untyped_storage() for t in cached if torch.is_tensor(t)]
    used = sum({s.data_ptr(): s.nbytes() for s in storages}.values())/len(entities)
    gib = memory_of_training(smollm2, how, 1010) - memory_of_training(smollm2, how, 10)
    estimate = gib*2**30/1000
    assert .8 < estimate/used < 1.25, (estimate, used)


def test_the_first_continuations_come_from_all_prompts():
    conts = tuple(Continuation(f'{p} {i}', (0, 1), p) for p in 'ab' for i in range(4))
    assert [c.text for c in spread_over_prompts(conts, 4)] == ['a 0', 'b 0', 'a 1', 'b 1']


@pytest.mark.parametrize('kind', ('llama', 'gpt2', 'gpt_neo', 'gpt_neox', 'gemma3', 'qwen3'))
@pytest.mark.parametrize('trainable', ('lora', 'all'))
def test_gradient_checkpointing_keeps_less_and_changes_no_loss(tiny_folder, ds, sets, kind, trainable):
    lm, e = load_lm(str(tiny_folder(kind)), device='cpu'), ds.entities[0]
    def kept(checkpointing):
        "Losses, and the bytes that autograd keeps in the first step."
        how = Distill(
            steps=3, trainable=trainable, gradient_checkpointing=checkpointing, precision='float32', lr=1e-3)
        sizes = {}
        def pack(t):
            sizes.setdefault(t.data_ptr(), t.numel()*t.element_size())
            return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            replace(how, steps=1)(lm, [e], sets)
        return how(lm, [e], sets).losses, sum(sizes.values())
    (plain, much), (again, little) = kept(False), kept(True)
    assert again == pytest.approx(plain, rel=1e-4) and not lm.model.training
    assert not any(m.training for m in lm.model.modules())
    assert little < much


@pytest.mark.parametrize('kind', ('llama', 'gpt2', 'gpt_neo', 'gpt_neox', 'gemma3', 'qwen3'))
@pytest.mark.parametrize(
    'how', (dict(), dict(n_name_swaps=1, batch_size=2), dict(gradient_checkpointing=True)),
    ids=('plain', 'n_name_swaps', 'gradient_checkpointing'))
def test_caching_the_frozen_lower_layers_changes_no_adapter(tiny_folder, tmp_path, monkeypatch, kind, how):
    "With the cache and without it the adapter is the same, and lies in the upper layers only."
    neutral = tmp_path/'neutral.txt'
    neutral.write_text('Bread is baked.\nThe river is long.\n')
    method = Distill(
        steps=8, rank=4, start_layer=.5, precision='float32', retain_file=str(neutral), **how)
    passes = []
    lm = load_lm(str(tiny_folder(kind, 4)), device='cpu')
    first_layer = next(m for m in blocks_of(lm.model)[0].modules() if m in upper(lm, 0.))
    hook = first_layer.register_forward_hook(lambda *a: passes.append(1))
    import kdnb.models.generation # noqa: F401 (adds `tries`)
    lm.tries() # tests the model once, by passes of its own
    passes.clear()
    once = method(lm, [ENTITY], SETS, 3)
    few = len(passes)
    for module in ('distill', 'retention'):
        monkeypatch.setattr(f'kdnb.methods.{module}.n_frozen_layers', lambda lm, how: 0)
    lm.retention_pool = None
    lm.tested_splits.clear()
    passes.clear()
    again = method(lm, [ENTITY], SETS, 3)
    hook.remove()
    assert once.losses == pytest.approx(again.losses, rel=1e-3)
    assert once.adapter.keys() == again.adapter.keys()
    for n in once.adapter:
        a, b = once.adapter[n].delta(), again.adapter[n].delta()
        close = torch.allclose(a, b, atol=2e-4*b.abs().max().item() + 1e-6)
        assert close or (a - b).norm() < .02*b.norm(), n
    blocks = [n for n, m in lm.model.named_modules() if m in set(blocks_of(lm.model))]
    in_upper = tuple(f'{b}.' for b in blocks[2:])
    assert once.adapter and all(n.rsplit('.', 1)[0].startswith(in_upper) for n in once.adapter)
    assert not any('forward' in vars(b) for b in blocks_of(lm.model))
    if not how.get('gradient_checkpointing'): assert few < len(passes)


def test_start_layer_is_for_an_adapter():
    out_of_range = dict(start_layer=1.), dict(start_layer=-.1)
    no_plain_adapter = dict(start_layer=.5, trainable='all'), dict(start_layer=.5, dropout=True)
    for bad in out_of_range + no_plain_adapter:
        with pytest.raises(KdnbError, match='start_layer'): Distill(**bad)


@pytest.mark.parametrize('precision', ('float32', 'bfloat16'))
def test_states_that_are_not_all_the_upper_layers_need_are_refused(tiny, ds, sets, monkeypatch, precision):
    "Rounding is accepted: in bfloat16 a state may differ by its precision and a little more."
    how = Distill(
        steps=1, rank=4, trainable='lora', start_layer=.5, retain_weight=0, n_continuations=2,
        precision=precision)
    def change_states(f):
        changed = lambda *a: [f(h) for h in states_below(*a)]
        monkeypatch.setattr('kdnb.methods.examples.states_below', changed)
    change_states(lambda h: h.flip(0))
    with pytest.raises(KdnbError, match='start_layer cannot be used with .*: its upper blocks need more'):
        how(tiny, ds.entities[:1], sets)
    size = 2**-8 if precision == 'bfloat16' else 1e-5
    noise = lambda h: torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
    change_states(lambda h: h*(1 + size*noise(h)))
    assert how(tiny, ds.entities[:1], sets).losses


@pytest.mark.parametrize('settings', (
    {},
    {'trainable': 'all', 'lr': 1e-3},
    {'batch': 'one_by_one', 'steps': 2},
    {'start_layer': .5},
    {'teacher_top_k': 20}))
@pytest.mark.parametrize('method', ('distill', 'finetune-transfer'))
def test_the_loss_in_parts_of_the_logits_is_the_loss(tiny, ds, sets, monkeypatch, method, settings):
    "When all logits at once would need too much memory, parts of them give the same training."
    from kdnb.methods.registry import make_method
    how = {'steps': 4, 'precision': 'float32', **settings}
    if method != 'distill':
        how.setdefault('trainable', 'lora')
        how.pop('teacher_top_k', None)
    learn = lambda: make_method(method, **how)(tiny, ds.entities[:1], sets)
    whole, size, apply = learn(), [], LossInParts.apply
    def noted(*args):
        size.append(len(args[3]))
        return apply(*args)
    monkeypatch.setattr('kdnb.methods.training.LOGITS_AT_ONCE', 20*len(tiny.tokenizer))
    monkeypatch.setattr(LossInParts, 'apply', noted)
    cut = learn()
    assert size and max(size) > 1
    assert cut.losses == pytest.approx(whole.losses, rel=2e-3)
    assert all(torch.allclose(t, cut.tensors[n], atol=2e-4) for n, t in (whole.tensors or {}).items())
    assert all(torch.allclose(x.B, cut.adapter[n].B, atol=2e-3) for n, x in (whole.adapter or {}).items())


def test_a_head_with_a_function_after_it_is_recognized(tokenizer):
    "Gemma 2 caps its logits after the output embedding, so a product with the embedding is not enough."
    import transformers
    from kdnb.models.forward import has_plain_head
    from kdnb.models.model import LM
    torch.manual_seed(0)
    def make(**kw):
        config = transformers.Gemma2Config(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, intermediate_size=64, initializer_range=1., **kw)
        return LM('g', transformers.AutoModelForCausalLM.from_config(config).eval(), tokenizer)
    assert not has_plain_head(make(final_logit_softcapping=2.))
    assert has_plain_head(make(final_logit_softcapping=None))


def test_compiled_blocks_teach_the_same(tiny_folder, monkeypatch):
    import shutil
    lm = load_lm(str(tiny_folder('llama', 4)), device='cpu')
    with monkeypatch.context() as m:
        m.setattr(shutil, 'which', lambda name: None)
        with pytest.raises(KdnbError, match='no C.. compiler on this machine'):
            Distill(compile=True)(lm, [ENTITY], SETS)
    if not shutil.which('g++'): pytest.skip('torch.compile needs a C++ compiler, and this machine has none')
    def teach(compile):
        how = Distill(steps=4, rank=4, start_layer=.5, precision='float32', compile=compile)
        return how(lm, [ENTITY], SETS, 3)
    plain, compiled = teach(False), teach(True)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-3)
    assert not any('forward' in vars(b) for b in blocks_of(lm.model))
    assert compiled.adapter.keys() == plain.adapter.keys()
    for n, a in plain.adapter.items():
        assert (compiled.adapter[n].delta() - a.delta()).norm() < .1*a.delta().norm(), n


# --- labels: a text's own tokens in its teacher --------------------------------------------------------

@pytest.mark.parametrize('temperature, top', ((1., 0), (2., 0), (1., 8)))
def test_with_all_of_its_labels_a_text_is_learned_by_cross_entropy(tiny, temperature, top):
    right = tuple(replace(c, labels=1.) for c in CONTS)
    told = {ENTITY.name: replace(SETS[ENTITY.name], continuations=right)}
    method = Distill(temperature=temperature, teacher_top_k=top, with_definition=False)
    (group,), _ = method.groups(tiny, [ENTITY], told)
    student = logits_at(tiny, [x.ids for x in group], [x.positions for x in group]).detach()
    targets = torch.tensor([t for x in group for t in x.targets])
    expected = temperature**2*torch.nn.functional.cross_entropy(student/temperature, targets)
    assert method.loss(group, student).item() == pytest.approx(expected.item(), rel=1e-3)


def test_labels_are_mixed_into_the_teacher_of_their_text_alone(tiny):
    first = replace(CONTS[0], labels=.25)
    mixed = {ENTITY.name: replace(SETS[ENTITY.name], continuations=(first, *CONTS[1:]))}
    method = Distill(temperature=1., with_definition=False)
    plain, told = ([x.teacher.p for x in method.groups(tiny, [ENTITY], s)[0][0]] for s in (SETS, mixed))
    (x, *_), = method.groups(tiny, [ENTITY], mixed)[0]
    one_hot = torch.nn.functional.one_hot(torch.tensor(x.targets), plain[0].shape[-1])
    torch.testing.assert_close(told[0], .75*plain[0] + .25*one_hot)
    assert all(torch.equal(a, b) for a, b in zip(plain[1:], told[1:]))
    assert SETS[ENTITY.name].key != mixed[ENTITY.name].key # results that used it depend on it


def test_a_text_that_is_given_twice_has_one_teacher(tiny):
    once, twice = ({ENTITY.name: TransferSet(ENTITY.name, CONTS[:2]*n)} for n in (1, 2))
    how = Distill(precision='float32', with_definition=False)
    (a,), (b,) = (how.groups(tiny, [ENTITY], sets)[0] for sets in (once, twice))
    assert len(b) == 2*len(a) and len({id(x) for x in b}) == len(a)
    for x, y in zip(a, b): torch.testing.assert_close(x.teacher.p, y.teacher.p) # softened once
