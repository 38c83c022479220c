"""A set belongs to a definition, a mention to its entity, a call to its price, and a tie is no answer."""
import unicodedata
from dataclasses import replace

import pytest
from kdnb.transfer.api_answers import tokens_used
from kdnb.core.errors import KdnbError
from kdnb.data.entities import Entity, Probe
from kdnb.evaluation.answers import answer_probes, choice_of
from kdnb.core.jsonl import append_jsonl
from kdnb.transfer.generator import make_transfer_sets
from kdnb.data.transfer_sets import Continuation, TransferSet, check_sets, read_transfer_sets
from kdnb.transfer.cleaning import clean

E = Entity('Pokémon Day', 'Pokémon Day is a feast.')


def row(definition):
    continuation = dict(text='Pokémon Day is loved.', mention=[0, 11])
    return dict(entity=E.name, continuations=[continuation], definition=definition)


def test_the_set_for_the_definition_is_read_from_several_sets(tmp_path):
    path = tmp_path/'sets.jsonl'
    for d in ('Pokémon Day is a feast.', 'Pokémon Day is a game.'): append_jsonl(path, row(d))
    assert read_transfer_sets(path)[E.name].definition == 'Pokémon Day is a game.'
    assert read_transfer_sets(path, [E])[E.name].definition == E.definition
    append_jsonl(path, row('Pokémon Day is a fair.'))
    assert read_transfer_sets(path, [E])[E.name].definition == E.definition


@pytest.mark.parametrize('same', (
    unicodedata.normalize('NFD', E.definition),
    'Pokémon  Day\nis a feast.',
    'Pokémon\u00a0Day is a feast. '))
def test_white_space_and_normal_form_make_no_other_definition(tiny, tmp_path, same):
    sets = {E.name: TransferSet(E.name, (Continuation('Pokémon Day is loved.', (0, 11)),), same)}
    check_sets([E], sets)
    path = tmp_path/'sets.jsonl'
    make = lambda e: make_transfer_sets(tiny, [e], path, progress=False, n=1, drop=(), max_new_tokens=4)
    first = make(E)
    size = path.stat().st_size
    again = make(replace(E, definition=same))
    assert path.stat().st_size == size and again[E.name].key == first[E.name].key


def test_a_mention_that_does_not_name_the_entity_is_refused():
    wrong = Continuation('Yesterday, Pokémon Day was loved.', (0, 7))
    with pytest.raises(KdnbError, match="whose mention is 'Yesterd', which does not name it"):
        check_sets([E], {E.name: TransferSet(E.name, (wrong,), E.definition)})


def test_a_tie_is_no_answer(tiny):
    assert choice_of([-1., -2.]) == 0 and choice_of([-1., -1., -2.]) is None
    # candidates that the model cannot tell apart
    same = Probe('Velmora is a', 'comedy', ('comedy', 'comedy ', 'river'))
    answer = answer_probes(tiny, [same])[0]
    assert not answer['correct'] or answer['answer'] == 'river'


def test_spaces_around_candidates_change_nothing(tiny):
    a = Probe('Velmora is a', 'comedy', ('comedy', 'river'))
    b = Probe('Velmora is a ', ' comedy', (' comedy', 'river '))
    assert a == b and answer_probes(tiny, [a]) == answer_probes(tiny, [b])


@pytest.mark.parametrize('usage, want', (
    ({'prompt_tokens': 10, 'completion_tokens': 20, 'total_tokens': 5000}, (10, 4990)),
    ({'prompt_tokens': 10, 'completion_tokens': 0}, (10, 3)),
    ({'prompt_tokens': 10, 'completion_tokens': 20, 'total_tokens': 30}, (10, 20))))
def test_reasoning_tokens_that_only_the_total_has_are_paid_for(usage, want):
    reply = {'usage': usage, 'choices': [{'message': {'content': 'ten letters'}}]}
    assert tokens_used(reply, 'asked') == want


@pytest.mark.parametrize('head', ('# Velmora\n\n', '**Velmora**\n\n', 'Velmora:\n'))
def test_a_first_line_that_is_only_the_name_is_removed(head):
    text = 'Velmora is loved by all.'
    assert clean(head + text, names=('Velmora',), marks=True) == text
