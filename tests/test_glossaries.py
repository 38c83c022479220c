"""Glossaries with a person's questions, which `teach` is compared with: their form, and no copied text."""
import json
from pathlib import Path

import pytest
from kdnb.core.text import contains_phrase, find_mention, words_of
from kdnb.data.definitions import read_definitions

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT/'tests'/'data'/'glossaries'
GLOSSARIES = ('ward', 'game', 'kitchen', 'codebase', 'family', 'office', 'company')
FIELDS = {'glossary', 'entity', 'text', 'answers', 'kind'}
LONGEST_SHARED = {'direct': 7, 'use': 4} # words in a row that a question may share with a definition


def entities_of(glossary): return {e.name: e for e in read_definitions(FOLDER/f'{glossary}.md')}

def questions_of(glossary=None):
    lines = (FOLDER/'questions.jsonl').read_text(encoding='utf-8').splitlines()
    return [q for q in map(json.loads, lines) if glossary in (None, q['glossary'])]

def shared_words(a, b):
    "The longest sequence of words that two texts share."
    a, b = words_of(a), f" {' '.join(words_of(b))} "
    runs = [a[i:j] for i in range(len(a)) for j in range(i + 1, len(a) + 1)]
    return max((r for r in runs if f" {' '.join(r)} " in b), key=len, default=[])

def faults(q, entities):
    "Yield what is wrong with a question about one of these entities."
    if q['entity'] not in entities:
        yield 'entity is not in the glossary'
        return
    definition = entities[q['entity']].definition
    others = [n for n in entities if n != q['entity']]
    if not find_mention(q['text'], [q['entity']]): yield 'entity is not named'
    if find_mention(q['text'], others): yield 'another entity is named'
    if not q['text'].endswith('?'): yield 'no question mark'
    if not q['answers'] or len(set(q['answers'])) < len(q['answers']): yield 'no answers, or one twice'
    if any(contains_phrase(q['text'], a) for a in q['answers']): yield 'the answer is in the question'
    if any(len(words_of(a)) > 4 for a in q['answers']): yield 'a long answer'
    if q['kind'] == 'direct' and not any(contains_phrase(definition, a) for a in q['answers']):
        yield 'the answer is not in the definition'
    for e in entities.values():
        shared = shared_words(q['text'], e.definition)
        if len(shared) > LONGEST_SHARED[q['kind']]: yield f"copies {' '.join(shared)!r}"


def test_all_glossaries_are_here():
    assert {p.stem for p in FOLDER.glob('*.md')} - {'README'} == set(GLOSSARIES)
    assert {q['glossary'] for q in questions_of()} == set(GLOSSARIES)
    assert all(set(q) == FIELDS for q in questions_of())


@pytest.mark.parametrize('glossary', GLOSSARIES)
def test_four_entries_are_read(glossary):
    assert len(entities_of(glossary)) == 4


def test_no_name_is_in_two_glossaries():
    names = [name for g in GLOSSARIES for name in entities_of(g)]
    assert len({n.casefold() for n in names}) == len(names) == 28


@pytest.mark.parametrize('glossary', GLOSSARIES)
def test_each_entity_has_a_direct_question_and_one_of_use(glossary):
    asked = sorted((q['entity'], q['kind']) for q in questions_of(glossary))
    assert asked == sorted((name, kind) for name in entities_of(glossary) for kind in ('direct', 'use'))


@pytest.mark.parametrize('glossary', GLOSSARIES)
def test_questions_can_be_answered_from_the_definition_alone(glossary):
    entities = entities_of(glossary)
    found = [(q['text'], fault) for q in questions_of(glossary) for fault in faults(q, entities)]
    assert not found


@pytest.mark.parametrize('glossary', GLOSSARIES)
def test_at_most_one_question_is_answered_by_yes_or_no(glossary):
    yes_or_no = [q['text'] for q in questions_of(glossary) if {'yes', 'no'} & set(q['answers'])]
    assert len(yes_or_no) <= 1


def test_answers_tell_the_entities_of_a_glossary_apart():
    "A page that answered one question with another's answer would be wrong."
    for g in GLOSSARIES:
        qs = questions_of(g)
        same = [(p['text'], q['text']) for p in qs for q in qs if p is not q
                and {a.casefold() for a in p['answers']} & {a.casefold() for a in q['answers']}]
        assert not same


PLANTED = { # fault -> what is changed in a right question
    'entity is not in the glossary': dict(entity='Zorbel'),
    'entity is not named': dict(text='On which floor is it?'),
    'another entity is named': dict(text='Is Café Zündkerze below Borealis?'),
    'no question mark': dict(text='The floor of Café Zündkerze'),
    'no answers, or one twice': dict(answers=[]),
    'the answer is in the question': dict(text='Is Café Zündkerze on the third floor?'),
    'a long answer': dict(answers=['third', 'on the third floor of it']),
    'the answer is not in the definition': dict(answers=['fourth']),
    "copies 'café zündkerze is the canteen on the third floor'": dict(
        text='True or not: Café Zündkerze is the canteen on the third floor?', answers=['3rd', 'lunches'])}

@pytest.mark.parametrize('fault', PLANTED)
def test_a_planted_fault_is_found(fault):
    entities = entities_of('company')
    q, = (q for q in questions_of('company') if q['entity'] == 'Café Zündkerze' and q['kind'] == 'direct')
    assert not list(faults(q, entities))
    assert fault in list(faults({**q, **PLANTED[fault]}, entities))


# --- what was measured on them ---------------------------------------------------------------------------

def test_the_site_has_the_numbers_of_the_committed_runs():
    from glossary_runs import table
    rows = json.loads((ROOT/'outputs/glossaries/smollm2.json').read_text())
    assert {r['glossary'] for r in rows} == set(GLOSSARIES)
    assert table(rows) in (ROOT/'docs/pages/teach.md').read_text()
