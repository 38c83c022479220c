"""Each objective: what is read, which tokens count, what is compared; on several models, in every regime."""

from dataclasses import replace
import pytest, torch
from kdnb.core.errors import KdnbError
from kdnb.data.entities import Entity
from kdnb.data.transfer_sets import Continuation, TransferSet
from kdnb.methods.distill import Distill
from kdnb.methods.objectives import OBJECTIVES
from kdnb.methods.parallel import train_parallel
from kdnb.methods.registry import make_method, needs_texts
from kdnb.models.forward import logits_at
from kdnb.models.model import load_lm

MILL = Entity('Oster mill', 'The Oster mill stands in the town of Velm. It was built in 1702 by a baker. '
              'The town lies on a river. People come to see the mill in summer.')
SHIP = Entity('', 'The ship was built by two bakers. It sails on the river in summer. '
              'A show is on it each week.', id='ship')
QUESTION = 'Question: Who built the Oster mill?\nAnswer: A baker.'
TEXTS = {
    MILL.key: (Continuation('People say that the Oster mill is old.', (16, 30)),
               Continuation(QUESTION, None, 'question', start=QUESTION.index(' A baker'))),
    SHIP.key: (Continuation('The ship is what people see on the river in summer.', None),)}
SETS = {k: TransferSet(k, cs) for k, cs in TEXTS.items()}
NAMES = sorted(OBJECTIVES)
FAST = dict(steps=2, rank=4, lr=1e-2, retain_weight=1., retain_batch_size=2)


def method(name, **more): return make_method(name, **{**FAST, **more})
def examples(lm, name, entity=MILL, **more): return method(name, **more).groups(lm, [entity], SETS)[0][0]
def read(lm, x): return lm.tokenizer.decode(x.ids), lm.tokenizer.decode(x.teacher_ids)
def targets(lm, x): return lm.tokenizer.decode(x.targets)
def logits(lm): return logits_at(lm, [lm.encode('The Oster mill is')], [[1, 3]]).detach()


@pytest.mark.parametrize('name', NAMES)
def test_what_each_side_reads(tiny, name):
    aim = OBJECTIVES[name]
    for x in examples(tiny, name):
        student, teacher = read(tiny, x)
        assert teacher.endswith(student.strip().split(' ', 1)[-1])
        before = teacher[:len(teacher) - len(student)]
        if aim.teacher_reads == 'definition': assert before.strip() == MILL.definition
        if aim.teacher_reads == 'nothing': assert not before.strip()
        if aim.teacher_reads == 'sentences_before':
            assert MILL.definition.startswith(teacher.strip()) and before.strip()
        assert [x.ids[p+1] for p in x.positions] == x.targets
        assert [x.teacher_ids[p+1] for p in x.teacher_positions] == x.targets


def test_which_tokens_count(tiny):
    of = lambda name, **more: [targets(tiny, x) for x in examples(tiny, name, **more)]
    assert of('distill')[0] == ' is old.'
    assert of('distill-answers') == [' is old.', ' A baker.']
    sentences = ['It was built in 1702 by a baker.', 'The town lies on a river.']
    for name in ('distill-sentences', 'finetune-sentences', 'disc'):
        for s in sentences: # all tokens but the first, for which the student has no prediction
            assert any(s.endswith(t.lstrip()) and len(s) - len(t) <= 3 for t in of(name)), (name, of(name))
    for t in of('finetune-masked'): assert t.strip() in MILL.definition and '_' not in t


def test_a_mixture_without_own_tokens_is_what_the_teacher_writes(tiny):
    for x in examples(tiny, 'mixsd', mixture=0., precision='float32'):
        if x.targets in [y.targets for y in examples(tiny, 'distill-answers')]: continue # kept its own words
        best = logits_at(tiny, [x.teacher_ids], [x.teacher_positions]).argmax(-1).tolist()
        assert x.targets[1:] == best[1:] and read(tiny, x)[1].startswith(MILL.definition)


@pytest.mark.parametrize('teacher', ('base', 'current'))
def test_hidden_states_are_those_of_the_same_blocks(tiny_folder, teacher):
    lm = load_lm(str(tiny_folder('llama', 4)), device='cpu')
    how = method('distill-hidden', start_layer=.5, teacher=teacher, precision='float32')
    first = how(lm, [SHIP], SETS)
    with first.on(lm):
        xs = how.groups(lm, [MILL], SETS)[0][0]
        assert all(x.teacher_states.shape[:2] == (len(x.positions), 2) for x in xs)
        assert how(lm, [MILL], SETS).losses


def test_masked_texts_hide_words_and_restore_them(tiny):
    for x in examples(tiny, 'finetune-masked'):
        student, _ = read(tiny, x)
        masked, _, whole = student.partition('\n')
        assert len(masked.split()) == len(whole.split())
        assert all(m in ('_', w) for m, w in zip(masked.split(), whole.split()))
    texts = [read(tiny, x)[0] for x in examples(tiny, 'finetune-masked')]
    shares = [t.count('_')/len(MILL.definition.split()) for t in texts]
    assert min(shares) < .4 < max(shares)


@pytest.mark.parametrize('name', [n for n in NAMES if OBJECTIVES[n].has_teacher])
def test_a_teacher_that_reads_nothing_more_teaches_nothing(tiny, name, monkeypatch):
    monkeypatch.setattr('kdnb.methods.distill.context_of_text', lambda *a: '')
    if name == 'disc':
        alone = lambda *a: [(Continuation(MILL.definition, None), 'definition')]
        monkeypatch.setattr('kdnb.methods.distill.own_texts', alone)
    edit = method(name, retain_weight=0., precision='float32', temperature=1., context_amplification=0.)(
        tiny, [MILL], SETS)
    assert edit.losses[0] < 1e-6
    assert max(edit.losses) < 1e-2 # AdamW makes a whole step of a gradient that is rounding error


@pytest.mark.parametrize('name', NAMES)
def test_each_objective_lowers_its_loss_and_leaves_the_model(tiny, name):
    before = logits(tiny)
    how = dict(steps=30, batch_size=0, sentences_per_step=0, retain_weight=0., schedule='constant')
    edit = method(name, **how)(tiny, [MILL], SETS)
    if name != 'on-policy': # its texts differ each time
        assert edit.losses[-1] < .9*edit.losses[0], edit.losses
    assert torch.equal(logits(tiny), before) and edit.method == name
    with edit.on(tiny): assert (logits(tiny) - before).abs().max() > 1e-3
    assert torch.equal(logits(tiny), before)


@pytest.mark.parametrize('name', NAMES)
def test_batch_sequential_and_parallel(tiny, name):
    how = method(name, precision='float32')
    entities = [MILL, SHIP]
    batch = how(tiny, entities, SETS)
    assert batch.entities == (MILL.key, 'ship') and len(batch.losses) == 4
    first = how(tiny, [MILL], SETS)
    before = logits(tiny)
    with first.on(tiny):
        applied = logits(tiny)
        how(tiny, [SHIP], SETS)
        assert torch.equal(logits(tiny), applied)
    assert torch.equal(logits(tiny), before)
    # the teacher is the unedited model, so the second edit has the teacher that it has alone
    alone = how(tiny, [SHIP], SETS)
    if OBJECTIVES[name].has_teacher:
        with first.on(tiny): taught = how.groups(tiny, [SHIP], SETS)[0][0]
        for x, y in zip(taught, how.groups(tiny, [SHIP], SETS)[0][0]):
            assert torch.equal(x.teacher.p, y.teacher.p)
    edits = train_parallel(how, tiny, entities, SETS)
    if name == 'on-policy': return # what an adapter writes depends on rounding
    for edit, want in zip(edits, (first, alone)):
        assert [*map(float, edit.losses)] == pytest.approx(want.losses, rel=.02, abs=2e-3)
        for k, a in edit.adapter.items(): assert torch.allclose(a.B, want.adapter[k].B, atol=2e-3)


@pytest.mark.parametrize('kind', ('gpt2', 'gpt_neo', 'gemma3'))
@pytest.mark.parametrize('name', ('distill-hidden', 'on-policy', 'mixsd', 'disc'))
def test_on_other_architectures(tiny_folder, kind, name):
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    before = logits(lm)
    edit = method(name, precision='float32')(lm, [MILL], SETS)
    assert len(edit.losses) == 2 and torch.equal(logits(lm), before)


def test_hidden_states_add_to_the_loss(tiny):
    how = dict(steps=1, precision='float32')
    of = lambda weight: method('distill-hidden', hidden_weight=weight, **how)(tiny, [MILL], SETS)
    plain, hidden, twice = (of(w).losses[0] for w in (0., 1., 2.))
    assert hidden > plain + .01 and twice - hidden == pytest.approx(hidden - plain, rel=.01)


def test_on_policy_texts_are_new_and_judged_by_the_untrained_model(tiny, monkeypatch):
    seen = []
    import kdnb.methods.distill as distill
    original = distill.student_examples
    def spy(*args):
        out = original(*args)
        seen.append([tuple(x.ids) for x in out])
        return out
    monkeypatch.setattr(distill, 'student_examples', spy)
    how = method('on-policy', steps=3)
    how(tiny, [MILL], SETS)
    first = list(seen)
    assert len(first) == 3 and len(set(map(tuple, first))) == 3
    seen.clear()
    how(tiny, [MILL], SETS)
    assert seen == first # the same seed writes the same texts


def test_labels_at_one_are_fine_tuning(tiny):
    how = dict(steps=3, precision='float32', temperature=1., context_amplification=0.)
    kl = method('distill-sentences', labels=1., **how)(tiny, [MILL], SETS)
    nll = method('finetune-sentences', **how)(tiny, [MILL], SETS)
    assert kl.losses == pytest.approx(nll.losses, rel=5e-3)


def test_needs_texts_and_errors(tiny):
    assert not needs_texts(method('disc')) and not needs_texts(method('finetune-masked'))
    assert needs_texts(method('distill-answers')) and needs_texts(method('mixsd'))
    one = replace(MILL, definition='A mill.')
    with pytest.raises(KdnbError, match='has one sentence'): method('disc')(tiny, [one], {})
    with pytest.raises(KdnbError, match='no transfer set'): method('distill')(tiny, [MILL], {})
    with pytest.raises(KdnbError, match="unknown objective 'poem'"): Distill(objective='poem')
    for wrong in (dict(labels=2.), dict(mixture=-1.), dict(hidden_weight=-1.)):
        with pytest.raises(KdnbError, match='must be a number from 0'): Distill(**wrong)


def test_a_long_document_is_read_in_windows(tiny):
    sentences = [f'The show of week {i} is about a baker of the town.' for i in range(300)]
    long = Entity('', ' '.join(sentences), id='long')
    xs = examples(tiny, 'distill-sentences', long)
    assert len(xs) == 300
    for i, x in enumerate(xs):
        _, teacher = read(tiny, x)
        # in its window, and as the text
        assert teacher.endswith(sentences[i]) and teacher.count(sentences[i]) == 2
        assert len(x.teacher_ids) < 1200
