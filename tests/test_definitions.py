"""Files of definitions are read as a person would read them, and ignored parts are named once."""
import json

import pytest
from kdnb.core.errors import KdnbError
from kdnb.data.definitions import read_definitions
from kdnb.data.entity_files import read_entities

FSHARP = 'F# is a functional programming language.'
SHOW = {'Velmora': 'Velmora is a show.'}
SHOW_AND_FILM = {**SHOW, 'Zorbel': 'Zorbel is a film.'}


def read(tmp_path, name, text):
    "Dict from names to definitions."
    (tmp_path/name).write_text(text, encoding='utf-8', newline='')
    return {e.name: e.definition for e in read_definitions(tmp_path/name)}


MARKDOWN = {
    'a hash in the name': (f'# F#\n{FSHARP}\n', {'F#': FSHARP}),
    'closing hashes': (f'# F# ##\n{FSHARP}\n', {'F#': FSHARP}),
    'marks in the heading': ('# **Velmora**\nVelmora is a _show_.\n', SHOW),
    'an underlined heading': ('Velmora\n=======\nVelmora is a show.\n', SHOW),
    'a hash in a code block': (f'# F#\n{FSHARP}\n```\n# no heading\n```\n', {'F#': FSHARP}),
    'a title with an introduction': (
        '# Our words\nAn introduction.\n\n'
        '## Velmora\nVelmora is a show.\n\n## Zorbel\nZorbel is a film.\n',
        SHOW_AND_FILM),
    'a title that names itself': (
        '# Glossary\nThis glossary has two words.\n'
        '## Velmora\nVelmora is a show.\n## Zorbel\nZorbel is a film.\n',
        SHOW_AND_FILM),
    'groups': (
        '# Shows\n## Velmora\nVelmora is a show.\n# Films\n## Zorbel\nZorbel is a film.\n',
        SHOW_AND_FILM),
    'front matter': ('---\ntitle: x\n# not this\n---\n# Velmora\nVelmora is a show.\n', SHOW),
    'text before the first heading': ('Hello.\n# Velmora\nVelmora is a show.\n', SHOW),
    'a part of a definition with a heading': (
        '# Velmora\nVelmora is a show.\n## Cast\nTwo bakers.\n',
        {'Velmora': 'Velmora is a show. Two bakers.'}),
    'no HTML': (
        '# vector<int>\nA vector<int> passes if a<b and c>d, e.g. <Name>; use Map<String, List<Int>>.\n',
        {'vector<int>': 'A vector<int> passes if a<b and c>d, e.g. <Name>; use Map<String, List<Int>>.'}),
    'HTML': ('# Velmora\nVelmora is<br>a <b>show</b><!-- no -->.\n', SHOW),
    'sections of one entity': (
        '# Velmora\nVelmora is a show.\n## Plot\nThe plot follows two bakers.\n## Cast\nThe cast is large.\n',
        {'Velmora': 'Velmora is a show. The plot follows two bakers. The cast is large.'}),
    'a name with stars': ('# M*A*S*H\nM*A*S*H is a show.\n', {'M*A*S*H': 'M*A*S*H is a show.'}),
    'a remark behind the name': ('# Velmora (TV show)\nVelmora is a show.\n', SHOW),
    'a list': (
        '# Velmora\nVelmora is\n- a show\n- and a game.\n',
        {'Velmora': 'Velmora is a show; and a game.'}),
    'a number in the heading': ('# 1.2. Velmora\nVelmora is a show.\n', SHOW),
    'an anchor behind the heading': ('## Velmora {#velmora}\nVelmora is a show.\n', SHOW),
    'a heading that is a year': ('# 1984\n1984 is a book.\n', {'1984': '1984 is a book.'}),
    'a table, a picture, a footnote and struck-out text': (
        '# Velmora\nVelmora is ~~not~~ a show[^1]. ![alt](x.png)\n\n'
        '| a | b |\n|---|---|\n| 1 | 2 |\n\n[^1]: A note.\n',
        SHOW),
    'line breaks of Windows': ('# Velmora\r\nVelmora is\r\na show.\r\n', SHOW),
    'a byte order mark': ('\ufeff# Velmora\nVelmora is a show.\n', SHOW)}


@pytest.mark.parametrize('name', MARKDOWN)
def test_markdown_is_read_as_a_person_would(tmp_path, name):
    text, want = MARKDOWN[name]
    assert read(tmp_path, 'x.md', text) == want


def test_ignored_parts_are_named_once(tmp_path, capsys):
    front, code = '---\na: b\n---\nHello.\n', '```\ncode\n```\n'
    title = '# Words\nAn introduction.\n'
    read(tmp_path, 'x.md', f'{front}{title}## F#\n{FSHARP}\n{code}## Velmora\nVelmora is a show.\n')
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    assert 'front matter' in err and 'the text before the first heading' in err
    assert "the title 'Words' (line 5) with the text below it" in err and 'a code block (line 9)' in err
    table = 'name,definition,source,notes\nVelmora,Velmora is a show.,web,\nZorbel,Zorbel is a film.,web,x\n'
    read(tmp_path, 'x.csv', table)
    assert capsys.readouterr().err.endswith('x.csv: columns that are not read: source, notes\n')


TABLES = {
    'capitals in the header': 'Name, Definition\nVelmora,"Velmora is a show."\n',
    'other columns': 'id,name,definition,source\n1,Velmora,Velmora is a show.,web\n',
    'empty rows': 'name,definition\nVelmora,Velmora is a show.\n,\n\n,\n',
    'semicolons': 'name;definition\r\nVelmora;Velmora is a show.\r\n',
    'tabs': 'name\tdefinition\nVelmora\tVelmora is a show.\n',
    'commas at the end of rows': 'name,definition\nVelmora,Velmora is a show.,,\n',
    'a byte order mark': '\ufeffname,definition\nVelmora,Velmora is a show.\n',
    'spaces around': 'name,definition\n Velmora , Velmora is a show. \n'}


@pytest.mark.parametrize('name', TABLES)
def test_tables_are_read_as_a_person_would(tmp_path, name):
    for file in ('x.csv', 'X.CSV'):
        (tmp_path/file).unlink(missing_ok=True)
        assert read(tmp_path, file, TABLES[name]) == SHOW


# name of the file, text, and a part of the error
BAD = {
    'the rest of a definition as an alias': (
        'x.csv',
        'name,definition,aliases\nVelmora,Velmora is a show, set in a town.,\n',
        "line 2: 'set in a town.' looks like the rest of a definition"),
    'the rest of a definition under no header': (
        'x.csv',
        'name,definition,,\nVelmora,Velmora is a show,set in a town.,\n',
        'looks like the rest of a definition'),
    'a column twice': (
        'x.csv',
        'name,definition,Definition\na,b,c\n',
        "line 1: the column 'definition' appears twice"),
    'a key twice': (
        'x.jsonl',
        '{"name": "Velmora", "definition": "Velmora is a show.", "name": "Zorbel"}\n',
        "line 1, the key 'name' appears twice"),
    'half a character': (
        'x.jsonl',
        '{"name": "Velmora", "definition": "Velmora \\ud83d is a show."}\n',
        'line 1, holds half of a character'),
    'no text under a heading': ('x.md', '# Velmora\n', 'line 1, field definition: must be a text'),
    'a number too long': ('x.jsonl', '{"name": ' + '1'*5000 + '}\n', 'line 1')}


@pytest.mark.parametrize('name', BAD)
def test_bad_definitions_are_an_error_with_their_line(tmp_path, name):
    file, text, says = BAD[name]
    with pytest.raises(KdnbError) as e: read(tmp_path, file, text)
    assert says in str(e.value) and '\n' not in str(e.value)


def test_spaces_around_names_and_candidates_are_removed_with_a_note(tmp_path, capsys):
    probe = dict(prompt='Velmora is a', gold=' comedy', candidates=['comedy', 'river '], kind='explicit')
    row = dict(name='Velmora ', definition='Velmora is a comedy.', probes=[probe])
    (tmp_path/'x.jsonl').write_text(json.dumps(row) + '\n')
    e, = read_entities(tmp_path/'x.jsonl')
    err = capsys.readouterr().err
    assert (e.name, e.probes[0].gold, e.probes[0].candidates) == ('Velmora', 'comedy', ('comedy', 'river'))
    assert err.count('were removed') == 3 and 'line 1, field candidates' in err
