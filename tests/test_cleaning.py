"""Cleaning of generated text: markers, tags, names with Markdown characters, and why a text is dropped."""
from kdnb.core.text import find_mention
from kdnb.data.entities import Entity
from kdnb.transfer.cleaning import clean, copied, same, why_drop

DEFINITION = 'Velmora Junction is a slapstick comedy series about two rival bakers in a small Scottish town.'
VELMORA = Entity('Velmora Junction', DEFINITION)
TEXT = 'Velmora Junction is a slapstick comedy.'


def test_reasons_to_drop_a_text():
    assert find_mention(TEXT, VELMORA.names) == (0, 16) and why_drop(TEXT, (0, 16), VELMORA) == ''
    assert why_drop(TEXT, (0, 16), VELMORA, {same(TEXT.upper())}) == 'duplicate'
    assert why_drop('It is a comedy about bakers.', None, VELMORA, drop=('duplicate',)) == ''
    assert why_drop('Velmora Junction', (0, 16), VELMORA, start='Velmora Junction') == 'nothing written'
    assert why_drop('Velmora是一部喜剧。', (0, 7), VELMORA) == ''
    assert copied('a b c d e', 'x a b c d') == .5


def test_a_text_ends_at_a_marker():
    for marker in ('<start_of_image>', '<|im_end|>', '</s>', '<unused7>'):
        assert clean(f' is a comedy. It runs{marker}One of the', 'Velmora') == 'Velmora is a comedy.'


def test_what_looks_like_a_marker_stays():
    for kept in ('Velmora has a vector<int>, and a <T>.', 'Velmora is in <b>bold</b>.'):
        assert clean(kept) == kept
    text = ' has less than <5 parts, and a > b.'
    assert clean(text, 'Velmora') == 'Velmora' + text


def test_marks_answers_and_half_characters():
    assert clean('*NSYNC is a band. It', names=['*NSYNC']) == '*NSYNC is a band.'
    assert clean('Sure, Velmora is fun.\nMore.', marks=True) == 'Sure, Velmora is fun.'
    assert clean('Velmora is \ud83d\ude00 fun\udc00.') == 'Velmora is 😀 fun\ufffd.'
    assert clean('<answer>Velmora是一部喜剧。它很有</answer>') == 'Velmora是一部喜剧。'
