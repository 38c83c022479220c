"""Names are found where a reader of their script finds them: in files, transfer sets, answers and routing."""
import unicodedata

import pytest
from kdnb.data.definitions import read_definitions
from kdnb.core.errors import KdnbError
from kdnb.core.text import contains_phrase
from kdnb.data.entities import Entity
from kdnb.edits.routing import AdapterRouter
from kdnb.core.text import find_mention, mentions, words_of
from kdnb.data.transfer_sets import mention
from kdnb.transfer.cleaning import why_drop

FOUND = [ # text, name, the part of the text that is found
    ('他昨天看了维尔莫拉的新节目', '维尔莫拉', '维尔莫拉'),
    ('昨日ヴェルモラを見ました', 'ヴェルモラ', 'ヴェルモラ'),
    ('어제 벨모라를 보았다', '벨모라', '벨모라'),
    ('เมื่อวานฉันดูเวลโมราที่บ้าน', 'เวลโมรา', 'เวลโมรา'),
    ('我喜欢Velmora的节目', 'Velmora', 'Velmora'),
    ('Мы видели Велмору.', 'Велмора', 'Велмору'),
    ('Olimme Velmorassa.', 'Velmora', 'Velmorassa'),
    ("Velmora's end", 'Velmora', 'Velmora'),
    ("C'est l'Étoile", 'Étoile', 'Étoile'),
    ('ذهبت بالقاهرة', 'القاهرة', 'بالقاهرة'),
    ('הם גרים בירושלים', 'ירושלים', 'בירושלים'),
    ("the O'Neill house", 'O’Neill', "O'Neill"),
    ('Spider‑Man', 'Spider-Man', 'Spider‑Man'),
    ('Velmora\u00a0Junction', 'Velmora Junction', 'Velmora\u00a0Junction'),
    ('Velmora\nJunction', 'Velmora Junction', 'Velmora\nJunction'),
    (unicodedata.normalize('NFD', 'the Pokémon'), 'Pokémon', unicodedata.normalize('NFD', 'Pokémon')),
    (unicodedata.normalize('NFD', '벨모라가'), '벨모라', unicodedata.normalize('NFD', '벨모라')),
    ('DIE HAUPTSTRASSE', 'Hauptstraße', 'HAUPTSTRASSE'),
    ('die Hauptstraße', 'HAUPTSTRASSE', 'Hauptstraße'),
    ('Velmora is', 'Velmora ', 'Velmora'),
    ('I like F#, too', 'F#', 'F#'),
    ('Tell us of Us.', 'Us', 'Us'),
    ('AC/DC’s', 'ac/dc', 'AC/DC'),
    ('القَاهِرَة هي', 'القاهرة', 'القَاهِرَة'),
    ('יְרוּשָׁלַיִם היא', 'ירושלים', 'יְרוּשָׁלַיִם'),
    ('ｶﾞﾝﾀﾞﾑが好き', 'ガンダム', 'ｶﾞﾝﾀﾞﾑ'),
    ('DİYARBAKIR', 'Diyarbakır', 'DİYARBAKIR'),
    ('IĞDIR', 'Iğdır', 'IĞDIR'),
    ('நான் சென்னையில்', 'சென்னை', 'சென்னையில்'),
    ('मी मुंबईत राहतो', 'मुंबई', 'मुंबईत'),
    ('είδα τον Γιώργο χθες', 'Γιώργος', 'Γιώργο'),
    ('თბილისში', 'თბილისი', 'თბილისში'),
    ('Velmora² is', 'Velmora', 'Velmora'),
    ('I write C++ here', 'C++', 'C++'),
    ('.NET is', '.NET', '.NET'),
    ('It has 4.5 parts', '4.5', '4.5'),
    ('the F-16 and', 'F-16', 'F-16')]
NOT_FOUND = [
    ('Tell us more', 'Us'),
    ('and it was', 'It'),
    ('banana', 'Ana'),
    ('TRIM-70', 'TRIM-7'),
    ('コナミの', 'コナ'),
    ('각', '가'),
    ('Cafe\u0301s', 'Caf'),
    ('used', 'Us'),
    ('the comedian', 'comedia n'),
    ('Anatomy', 'Ana'),
    ('새벨모라', '벨모라'),
    ('anything', ' '),
    ('Mrs Davidson', 'David'),
    ('Julia Robertson', 'Robert'),
    ('Mr Peterson', 'Peter'),
    ('Carlos lives', 'Carla'),
    ('Julius Caesar', 'Julia'),
    ('Julian left', 'Julia'),
    ('Simone plays', 'Simon'),
    ('Roberta', 'Robert'),
    ('Jameson', 'James'),
    ('the marine', 'Maria'),
    ('The parish church', 'Paris'),
    ('his chin', 'China'),
    ('The coroner', 'Corona'),
    ('Virginia', 'Virgin'),
    ('swiftly', 'Swift'),
    ('the reactor', 'React'),
    ('a strip', 'Stripe'),
    ('He writes C++', 'C'),
    ('F# code', 'F'),
    ('R&D', 'R'),
    ('AC/DC', 'AC'),
    ('VB.NET', '.NET'),
    ('1984.5', '1984'),
    ('4.2', '4'),
    ('-4', '4'),
    ('1,000', '1'),
    ('1,000', '000'),
    ('5:30', '5'),
    ('2/3', '2'),
    ('бои', 'бой')]


@pytest.mark.parametrize('text, name, want', FOUND)
def test_a_name_is_found(text, name, want):
    a, b = find_mention(text, [name])
    assert text[a:b] == want
    assert [text[m.start:m.end] for m in mentions(text, [name])] == [want]


@pytest.mark.parametrize('text, name', NOT_FOUND)
def test_a_similar_word_is_not_taken_for_a_name(text, name):
    assert find_mention(text, [name]) is None and mentions(text, [name]) == []


def test_exact_case_comes_first():
    assert find_mention('an apple of Apple', ['Apple']) == (12, 17)
    assert find_mention('us, Us', ['Us']) == (4, 6)


def test_the_file_the_transfer_set_the_answer_and_the_router_agree(tmp_path):
    text, name = '昨晚他看了维尔莫拉，然后笑了很久。', '维尔莫拉'
    (tmp_path/'x.md').write_text(f'# {name}\n{name}是一部关于两个面包师的喜剧。\n', encoding='utf-8')
    e, = read_definitions(tmp_path/'x.md')
    assert mention(text, e) == ((5, 9), 'exact')
    assert why_drop(text, (5, 9), e) == ''
    assert contains_phrase(text, name) and not contains_phrase(text, '喜剧')
    assert AdapterRouter({name: 'edit', 'Velmora': 'other'}).find(text) == name


def test_a_prompt_is_routed_to_its_last_name():
    router = AdapterRouter({'Us': 'a', 'Velmora': 'b', 'Velmora Junction': 'c'})
    assert router.find('Tell us about Velmora') == 'Velmora'
    assert router.find('VELMORA JUNCTION is') == 'Velmora Junction'
    assert router.find('In Us, Velmora') == 'Velmora'
    assert router.find('Give us it') is None
    assert router.find('Us') == 'Us'
    with pytest.raises(KdnbError, match='two entities are called'):
        AdapterRouter.of([Entity('Straße', 'x'), Entity('STRASSE', 'x')], ['a', 'b'])


def test_texts_in_scripts_without_spaces_are_not_dropped_as_too_short():
    assert words_of('然后笑了') == ['然', '后', '笑', '了']
