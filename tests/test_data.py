"""The data that ship with the package."""
import re

from kdnb.core.files import ASSETS


def test_neutral_texts_answer_no_specificity_probe(ds):
    "Retention texts must not train specificity: no sentence has both a probe's answer and its subject."
    usual = {'In', 'The', 'On', 'A', 'An', 'Every', 'When', 'It', 'Most', 'For', 'By'}
    for line in (ASSETS/'neutral.txt').read_text(encoding='utf-8').splitlines():
        for p in ds.specificity:
            names = [w for w in re.findall(r'[A-Z]\w+', p.prompt) if w not in usual]
            has_answer = re.search(rf'\b{re.escape(p.gold)}\b', line)
            has_subject = any(re.search(rf'\b{n}\b', line) for n in names)
            assert not (has_answer and has_subject), (p.prompt, p.gold, line)


def test_nothing_is_trained_on_the_held_out_texts():
    from kdnb.evaluation.exam_writer import shares_words
    trained = (ASSETS/'neutral.txt').read_text(encoding='utf-8').splitlines()
    held_out = (ASSETS/'neutral_held_out.txt').read_text(encoding='utf-8').splitlines()
    assert len(held_out) == len(set(held_out)) == 40 and all(held_out)
    assert not [h for h in held_out if any(shares_words(h, t, 6) for t in trained)]


def test_neutral_texts_name_no_entity(ds):
    files = ('neutral.txt', 'neutral_held_out.txt')
    text = '\n'.join((ASSETS/f).read_text(encoding='utf-8') for f in files)
    assert not [n for e in ds.entities for n in e.names if n in text]


def test_swapped_names_occur_in_no_entity_and_no_probe(ds):
    names = (ASSETS/'names.txt').read_text(encoding='utf-8').splitlines()
    assert len(names) == len(set(names)) == 100
    texts = [p.prompt for p in ds.specificity]
    for e in ds.entities: texts += [*e.names, e.definition, *(p.prompt for p in e.probes)]
    all_texts = '\n'.join(texts).casefold()
    assert not [n for n in names if n.removeprefix('the ').casefold() in all_texts]


def test_every_candidate_is_gold_once_in_its_form(ds):
    "No majority answer: among the six entities of a kind, each candidate of a question is correct once."
    for kind in {e.kind for e in ds.entities}:
        es = [e for e in ds.entities if e.kind == kind]
        for probes in zip(*(e.probes for e in es)):
            assert len({p.candidates for p in probes}) == 1
            assert sorted(p.gold for p in probes) == sorted(probes[0].candidates)


def test_every_entity_has_a_shipped_transfer_set(ds):
    from kdnb.transfer.generator import LMGenerator
    from kdnb.core.text import find_mention
    from kdnb.data.transfer_sets import shipped_transfer_sets
    sets, default = shipped_transfer_sets(), LMGenerator.defaults
    for e in ds.entities:
        s = sets[e.name]
        assert len(s.continuations) == default['n'] and s.definition == e.definition
        assert s.made_by['lm'] == 'smollm2'
        # made with the defaults
        made_by = {k: tuple(v) if isinstance(v, list) else v for k, v in s.made_by.items()}
        assert {k: made_by[k] for k in default} == default
        for c in s.continuations: assert c.mention == find_mention(c.text, e.names)
