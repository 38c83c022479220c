"""A set belongs to a definition, a mention to its entity, a call to its price, and a tie to nobody."""
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
def row(definition, text='Pokémon Day is loved.', mention=(0, 11)): return {'entity': E.name, 'continuations': [{'text': text, 'mention': list(mention)}], 'definition': definition}


def test_of_several_sets_the_one_for_the_definition_is_taken(tmp_path):
    for d in ('Pokémon Day is a feast.', 'Pokémon Day is a game.'): append_jsonl(tmp_path/'sets.jsonl', row(d))
    assert read_transfer_sets(tmp_path/'sets.jsonl')[E.name].definition == 'Pokémon Day is a game.'
    assert read_transfer_sets(tmp_path/'sets.jsonl', [E])[E.name].definition == E.definition
    append_jsonl(tmp_path/'sets.jsonl', row('Pokémon Day is a fair.'))
    assert read_transfer_sets(tmp_path/'sets.jsonl', [E])[E.name].definition == E.definition


@pytest.mark.parametrize('same', (unicodedata.normalize('NFD', E.definition), 'Pokémon  Day\nis a feast.', 'Pokémon\u00a0Day is a feast. '))
def test_white_space_and_normal_form_make_no_other_definition(tiny, tmp_path, same):
    sets = {E.name: TransferSet(E.name, (Continuation('Pokémon Day is loved.', (0, 11)),), same)}
    check_sets([E], sets)
    first = make_transfer_sets(tiny, [E], tmp_path/'sets.jsonl', progress=False, n=1, drop=(), max_new_tokens=4)
    size = (tmp_path/'sets.jsonl').stat().st_size
    again = make_transfer_sets(tiny, [replace(E, definition=same)], tmp_path/'sets.jsonl', progress=False, n=1, drop=(), max_new_tokens=4)
    assert (tmp_path/'sets.jsonl').stat().st_size == size and again[E.name].key == first[E.name].key


def test_a_mention_that_does_not_name_the_entity_is_refused():
    sets = {E.name: TransferSet(E.name, (Continuation('Yesterday, Pokémon Day was loved.', (0, 7)),), E.definition)}
    with pytest.raises(KdnbError, match="whose mention is 'Yesterd', which does not name it"): check_sets([E], sets)


def test_a_tie_is_no_answer(tiny):
    assert choice_of([-1., -2.]) == 0 and choice_of([-1., -1., -2.]) is None
    same = Probe('Velmora is a', 'comedy', ('comedy', 'comedy ', 'river')) # candidates that the model cannot tell apart
    assert not answer_probes(tiny, [same])[0]['correct'] or answer_probes(tiny, [same])[0]['answer'] == 'river'


def test_spaces_around_candidates_change_nothing(tiny):
    a, b = (Probe(left, gold, candidates) for left, gold, candidates in (('Velmora is a', 'comedy', ('comedy', 'river')), ('Velmora is a ', ' comedy', (' comedy', 'river '))))
    assert a == b and answer_probes(tiny, [a]) == answer_probes(tiny, [b])


@pytest.mark.parametrize('usage, want', (({'prompt_tokens': 10, 'completion_tokens': 20, 'total_tokens': 5000}, (10, 4990)), ({'prompt_tokens': 10, 'completion_tokens': 0}, (10, 3)), ({'prompt_tokens': 10, 'completion_tokens': 20, 'total_tokens': 30}, (10, 20))))
def test_thoughts_that_stand_in_the_total_alone_are_paid_for(usage, want):
    assert tokens_used({'usage': usage, 'choices': [{'message': {'content': 'ten letters'}}]}, 'asked') == want


@pytest.mark.parametrize('head', ('# Velmora\n\n', '**Velmora**\n\n', 'Velmora:\n'))
def test_a_first_line_that_is_only_the_name_is_passed_over(head):
    assert clean(f'{head}Velmora is loved by all.', names=('Velmora',), marks=True) == 'Velmora is loved by all.'
