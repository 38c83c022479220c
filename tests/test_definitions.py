"""Files of definitions are read as a person would read them, and ignored parts are named once."""
import json

import pytest
from kdnb.apps.versions import make_version
from kdnb.core.errors import KdnbError
from kdnb.core.files import make_folder
from kdnb.core.records import FolderRecord
from kdnb.data.benchmarks import load_data
from kdnb.data.definitions import read_definitions, read_files
from kdnb.data.entity_files import read_entities

FSHARP = 'F# is a functional programming language.'
SHOW = {'Velmora': 'Velmora is a show.'}
TERMS = {'Velmora': 'Velmora: a show about two bakers', 'Zorbel': 'Zorbel is a horror film'}
SHOW_AND_FILM = {**SHOW, 'Zorbel': 'Zorbel is a film.'}


def entities_of(tmp_path, name, text):
    (tmp_path/name).write_text(text, encoding='utf-8', newline='')
    return read_definitions(tmp_path/name)


def read(tmp_path, name, text):
    "Dict from names to definitions."
    return {e.name: e.definition for e in entities_of(tmp_path, name, text)}


GLOSSARY = '''\
# Internal glossary

Everything new people ask about in their first week.

## Borealis
Borealis is our nightly batch pipeline that copies orders from the shop database into the warehouse. It
runs at 02:30 UTC and is owned by the Logistics Data team in Ghent.

## TRIM-7
TRIM-7 (*Transport Risk Index Model*, version 7) is a gradient-boosted model which predicts whether a
refrigerated truck will arrive late. It is retrained every Monday.

- owner: Pricing
- language: Rust

## The Ladder
The Ladder is a four-step escalation procedure for outages: page the on-call engineer, then the team
lead, then the duty manager, and finally the CTO.

## Café Zündkerze
Café Zündkerze is the canteen on the third floor; it serves vegetarian lunches only and closes at 14:00.
'''

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
        {'Velmora': 'Velmora is a show. a: 1, b: 2'}),
    'a table of properties': (
        '# Velmora\nVelmora is a show.\n\n| Field | Value |\n|---|---|\n| city | Oslo |\n| year | 2031 |\n\n'
        'It ends.\n',
        {'Velmora': 'Velmora is a show. city: Oslo; year: 2031. It ends.'}),
    'a list of properties': (
        '# Velmora\nA show about two bakers.\n\n- **city**: Oslo\n- **year**: 2031\n',
        {'Velmora': 'Velmora: A show about two bakers. city: Oslo; year: 2031'}),
    'a table of terms': (
        '# Words\nAn introduction.\n\n| Term | Meaning | Since |\n|---|---|---|\n'
        '| **Velmora** | a show about two bakers | 2031 |\n| Zorbel | Zorbel is a horror film | 2032 |\n',
        TERMS),
    'a table with our columns, in another order': (
        '| Definition | Name |\n|---|---|\n| Velmora is a show. | Velmora |\n', SHOW),
    'a list of terms': (
        '# Words\n\n- **Velmora**: a show about two bakers\n- **Zorbel** – Zorbel is a horror film\n',
        TERMS),
    'paragraphs that begin with a term': (
        '**Velmora:** a show about two bakers\n\n**Zorbel** — Zorbel is a horror film\n',
        TERMS),
    'a definition list': (
        'Velmora\n: a show about two bakers\n\nZorbel\n: Zorbel is a horror film\n', TERMS),
    'a term with two paragraphs': (
        '# Words\n**Velmora**: a show about two bakers.\n\nIt ends in Oslo.\n\n'
        '**Zorbel**: Zorbel is a horror film\n',
        {**TERMS, 'Velmora': 'Velmora: a show about two bakers. It ends in Oslo.'}),
    'sections that are tables of terms': (
        '# Words\n## Shows\n| a | b |\n|---|---|\n| Velmora | a show about two bakers |\n'
        '## Films\n| a | b |\n|---|---|\n| Zorbel | Zorbel is a horror film |\n',
        TERMS),
    'a name that the text never mentions': ('# Velmora\nA show.\n', {'Velmora': 'Velmora: A show.'}),
    'names that no text mentions, below a title': (
        '# Words\n## Velmora\nA show.\n## Zorbel\nA film.\n',
        {'Velmora': 'Velmora: A show.', 'Zorbel': 'Zorbel: A film.'}),
    'a fragment below a heading': (
        '# Velmora\nVelmora is a show.\n## Owner\nOslo TV\n## Cast\nTwo bakers.\n',
        {'Velmora': 'Velmora is a show. Owner: Oslo TV. Two bakers.'}),
    'groups with introductions': (
        '# Handbook\nHello.\n## Shows\nOur shows.\n### Velmora\nVelmora is a show.\n'
        '### Zorbel\nZorbel is a film.\n## Teams\n### Mira\nMira leads a team.\n',
        {**SHOW_AND_FILM, 'Mira': 'Mira leads a team.'}),
    'paragraphs': (
        '# Velmora\nVelmora is a show.\n\nIt ends in Oslo.\n',
        {'Velmora': 'Velmora is a show. It ends in Oslo.'}),
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
    assert "the title 'Words' with the text below it (line 5)" in err and 'a code block (line 9)' in err
    table = 'name,definition,source,notes\nVelmora,Velmora is a show.,web,\nZorbel,Zorbel is a film.,web,x\n'
    read(tmp_path, 'x.csv', table)
    assert capsys.readouterr().err.endswith(
        'x.csv: ignored: the column source (line 1), the column notes (line 1)\n')


TABLES = {
    'capitals in the header': 'Name, Definition\nVelmora,"Velmora is a show."\n',
    'other columns': 'id,name,definition,source\n1,Velmora,Velmora is a show.,web\n',
    'empty rows': 'name,definition\nVelmora,Velmora is a show.\n,\n\n,\n',
    'semicolons': 'name;definition\r\nVelmora;Velmora is a show.\r\n',
    'tabs': 'name\tdefinition\nVelmora\tVelmora is a show.\n',
    'commas at the end of rows': 'name,definition\nVelmora,Velmora is a show.,,\n',
    'a byte order mark': '\ufeffname,definition\nVelmora,Velmora is a show.\n',
    'spaces around': 'name,definition\n Velmora , Velmora is a show. \n',
    'a line with the separator': 'sep=;\r\nname;definition\r\nVelmora;Velmora is a show.\r\n',
    'a line break in quotes': 'name,definition\r\nVelmora,"Velmora is\r\na show."\r\n'}


@pytest.mark.parametrize('name', TABLES)
def test_tables_are_read_as_a_person_would(tmp_path, name):
    for file in ('x.csv', 'X.CSV'):
        (tmp_path/file).unlink(missing_ok=True)
        assert read(tmp_path, file, TABLES[name]) == SHOW


@pytest.mark.parametrize('name, encoding', [('x.csv', 'utf-16'), ('x.txt', 'utf-16'), ('x.tsv', 'utf-8')])
def test_a_table_as_spreadsheets_save_it(tmp_path, name, encoding):
    "Excel saves Unicode text as UTF-16 with tabs, and names it .txt."
    (tmp_path/name).write_bytes('Name\tDefinition\r\nVelmora\tVelmora is a show.\r\n'.encode(encoding))
    assert [(e.name, e.definition) for e in read_definitions(tmp_path/name)] == [*SHOW.items()]


# name of a file, its text, and what is read
TEXTS = {
    'a title': ('a.txt', 'Velmora\n\nVelmora is\na show.\n', SHOW),
    'an underlined title': ('a.txt', 'Velmora\n=======\nVelmora is a show.\n', SHOW),
    'the name of the file': ('velmora.txt', 'Velmora is a show.\n', SHOW),
    'the name of the file, that the text never mentions': (
        'Velmora.txt', 'A show.\n', {'Velmora': 'Velmora: A show.'}),
    'a title that is no name': ('velmora.txt', 'An overview\n\nVelmora is a show.\n', SHOW),
    'paragraphs and a list': (
        'the_ladder.txt',
        'The Ladder has steps:\n\n- page the engineer\n- page the CTO\n\nIt is old.\n',
        {'The Ladder': 'The Ladder has steps: page the engineer; page the CTO. It is old.'})}


@pytest.mark.parametrize('name', TEXTS)
def test_a_text_file_is_one_document(tmp_path, name):
    file, text, want = TEXTS[name]
    assert read(tmp_path, file, text) == want


def test_the_glossary_of_a_company(tmp_path):
    "Four entities; the title and the introduction are ignored, and named."
    (tmp_path/'x.md').write_text(GLOSSARY, encoding='utf-8')
    found = read_files(tmp_path/'x.md')
    assert [e.name for e in found.entities] == ['Borealis', 'TRIM-7', 'The Ladder', 'Café Zündkerze']
    assert found.entities[1].definition.endswith('every Monday. owner: Pricing; language: Rust')
    title = "the title 'Internal glossary' with the text below it (line 1)"
    assert [str(r) for r in found.remarks] == [title]


QUESTION = ('Who shows Velmora?', ('Oslo TV', 'the TV'))
QUESTIONS = { # name of a file, and its text
    'x.csv': 'name,definition,question,answer\n'
             'Velmora,Velmora is a show.,Who shows Velmora?,Oslo TV; the TV\n',
    'x.jsonl': json.dumps(dict(name='Velmora', definition='Velmora is a show.', questions=[
        dict(text='Who shows Velmora?', answers=['Oslo TV', 'the TV'])])),
    'x.json': json.dumps([dict(name='Velmora', definition='Velmora is a show.', questions=[
        dict(text='Who shows Velmora?', answers=['Oslo TV', 'the TV'])])], indent=1),
    'one line.md': '# Velmora\nVelmora is a show.\n- Q: Who shows Velmora? / A: Oslo TV; the TV\n',
    'two lines.md': '# Velmora\nVelmora is a show.\n- Q: Who shows Velmora?\n  A: Oslo TV; the TV\n',
    'two items.md': '# Velmora\nVelmora is a show.\n- **Q:** Who shows Velmora?\n- **A:** Oslo TV; the TV\n',
    'a heading.md': '# Velmora\nVelmora is a show.\n## FAQ\nQ: Who shows Velmora?\n\nA: Oslo TV; the TV\n',
    'a table.md': '| name | definition | question | answer |\n|---|---|---|---|\n'
                  '| Velmora | Velmora is a show. | Who shows Velmora? | Oslo TV; the TV |\n',
    'x.txt': 'Velmora\n\nVelmora is a show.\n\nQ: Who shows Velmora?\nA: Oslo TV; the TV\n'}


@pytest.mark.parametrize('file', QUESTIONS)
def test_questions_of_the_user(tmp_path, file):
    (tmp_path/file).write_text(QUESTIONS[file], encoding='utf-8')
    e, = read_definitions(tmp_path/file)
    assert e.definition == 'Velmora is a show.'
    assert [(q.text, q.answers) for q in e.questions] == [QUESTION]


def test_questions_of_terms_and_questions_below_no_entity(tmp_path):
    (tmp_path/'x.md').write_text(
        '# Words\n- Q: Why? / A: So\n- **Velmora**: a show about bakers\n  - Q: Where? / A: Oslo\n'
        '- **Zorbel**: a film about a ghost\n  - Q: When? / A: 2031\n', encoding='utf-8')
    found = read_files(tmp_path/'x.md')
    assert [[q.text for q in e.questions] for e in found.entities] == [['Where?'], ['When?']]
    assert ("the question 'Why?'", 'it is below no entity') in [(r.what, r.why) for r in found.remarks]


def test_several_rows_with_other_questions_are_one_entity(tmp_path):
    (tmp_path/'x.csv').write_text(
        'name,definition,question,answer\nVelmora,Velmora is a show.,What?,a show\n'
        'Zorbel,Zorbel is a film.,,\nVelmora,Velmora is a show.,Where?,Oslo\nVelmora,,When?,2031\n'
        ',,How?,slowly\n')
    velmora, zorbel = read_definitions(tmp_path/'x.csv')
    assert [q.text for q in velmora.questions] == ['What?', 'Where?', 'When?']
    assert [q.text for q in zorbel.questions] == ['How?']


def test_names_that_were_put_in_front_are_said(tmp_path, capsys):
    read(tmp_path, 'x.csv', 'name,definition\nVelmora,a show\n')
    assert capsys.readouterr().err.endswith("x.csv: added: 'Velmora: ' in front of its definition (line 2)\n")


def test_a_folder_of_all_kinds(tmp_path):
    for name, text in {
        'a.md': '# Borealis\nBorealis is a pipeline.\n',
        'b.csv': 'name,definition\nQuint,Quint is a bank.\n',
        'c.txt': 'Harno\n\nHarno is a bridge.\n',
        'd.jsonl': '{"name": "Orla", "definition": "Orla is a dog."}\n',
        'e.json': '[{"name": "Ulm", "definition": "Ulm is a cat."}]',
        'f.docx': 'x', '.git/g.md': '# x\nx is y.\n', 'empty.txt': '\n', 'package.json': '{"name": "x"}',
        'taught/kdnb.json': '{"files": {}}', 'taught/d.jsonl': '{"name": "A", "definition": "A is."}\n',
        }.items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(text)
    found = read_files(tmp_path)
    assert [e.name for e in found.entities] == ['Borealis', 'Quint', 'Harno', 'Orla', 'Ulm']
    ignored = [(r.what, r.why) for r in found.remarks if r.ignored]
    assert ignored == [
        ('f.docx', 'it is none of .jsonl, .csv, .md, .markdown, .json, .tsv, .txt'),
        ('package.json', 'it holds no definition'), ('taught/d.jsonl', 'kdnb wrote its folder'),
        ('taught/kdnb.json', 'kdnb wrote its folder'), ('the file', 'it is empty')]


@pytest.mark.parametrize('name', ['x.md', 'x.csv', 'x.txt', ''])
def test_other_commands_read_the_same_files(tmp_path, name):
    texts = {'x.csv': 'name,definition\nVelmora,Velmora is a show.\n',
             'x.txt': 'Velmora\n\nVelmora is a show.\n'}
    (tmp_path/(name or 'y.md')).write_text(texts.get(name, '# Velmora\nVelmora is a show.\n'))
    ds, sets = load_data(tmp_path/name)
    assert {e.name: e.definition for e in ds.entities} == SHOW and ds.specificity and sets == {}


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
    'a question without an answer': (
        'x.csv', 'name,definition,question\nVelmora,Velmora is a show.,What is it?\n',
        "x.csv, line 2: the question 'What is it?' has no answer"),
    'an answer without a question': (
        'x.csv', 'name,definition,answer\nVelmora,Velmora is a show.,a show\n',
        "x.csv, line 2: the answer 'a show' has no question"),
    'a question without an answer, in a list': (
        'x.md', '# Velmora\nVelmora is a show.\n- Q: What is it?\n- It is new.\n',
        "x.md, line 3: the question 'What is it?' has no answer: add \"A: ...\" after it"),
    'questions that are no list': (
        'x.jsonl', '{"name": "Velmora", "definition": "Velmora is a show.", "questions": "What?"}\n',
        'line 1, field questions: must be a list'),
    'a question of the wrong form': (
        'x.json', '[{"name": "Velmora",\n"definition": "Velmora is a show."},\n'
        '{"name": "Zorbel", "definition": "Zorbel is a film.", "questions": [{"text": "What?"}]}]',
        'x.json, line 3, field questions: must be an object with text and answers'),
    'a list that is cut off': ('x.json', '[{"name": "Velmora"},\n{"na', 'x.json, line 2, column 2: not JSON'),
    'a glossary or an article': (
        'x.md', '# Words\nOurs.\n## Velmora\nA show.\n## Zorbel\nA film.\n',
        "x.md, line 1: no text names 'Words' or the headings below it (Velmora, Zorbel), so it is unclear "
        "which of them are entities: begin the text of each entity with its name, as in 'Words is …'"),
    'a definition that never names its entity, in JSON': (
        'x.jsonl', '{"name": "Velmora", "definition": "A show."}\n', "never names the entity 'Velmora'"),
    'another encoding': ('x.csv', None, 'x.csv is not UTF-8 text (byte 16): save it as UTF-8'),
    'no text under a heading': ('x.md', '# Velmora\n', 'line 1, field definition: must be a text'),
    'a number too long': ('x.jsonl', '{"name": ' + '1'*5000 + '}\n', 'line 1')}


@pytest.mark.parametrize('name', BAD)
def test_bad_definitions_are_an_error_with_their_line(tmp_path, name):
    file, text, says = BAD[name]
    if text is None:
        (tmp_path/file).write_bytes('name,definition\nÉtoile,Étoile is a show.\n'.encode('cp1252'))
        with pytest.raises(KdnbError) as e: read_definitions(tmp_path/file)
        assert str(e.value).endswith(says)
        return
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


def test_questions_survive_a_version_of_a_taught_folder(tmp_path, tiny):
    "The definitions of a version are written as JSON lines and read again by the next teaching."
    (tmp_path/'x.md').write_text(QUESTIONS['one line.md'])
    entities = read_definitions(tmp_path/'x.md')
    version = make_version(FolderRecord.read(make_folder(tmp_path/'out')), tiny, entities)
    assert read_entities(version/'definitions.jsonl') == entities


@pytest.mark.parametrize('file, text', (
    ('x.csv', 'name,definition\n{0},{0} is a show.\n'), ('x.md', '# {0}\n{0} is a show.\n'),
    ('x.txt', '{0}\n\n{0} is a show.\n')))
def test_a_name_has_one_normal_form(tmp_path, file, text):
    "é may be one character or two: the key of an entity is the same after it was written and read again."
    entities = entities_of(tmp_path, file, text.format('Cafe\u0301 Velmora'))
    assert [e.name for e in entities] == ['Caf\u00e9 Velmora']


def test_further_rows_add_aliases_and_kind(tmp_path):
    e, = entities_of(tmp_path, 'x.csv', 'name,definition,aliases,kind,question,answer\n'
              'Velmora,Velmora is a show.,,,Is it a show?,yes\nVelmora,,Velm,film,Is it long?,no\n')
    assert (e.aliases, e.kind, len(e.questions)) == (('Velm',), 'film', 2)


def test_a_quoted_field_may_be_followed_by_a_space(tmp_path):
    row = 'Velmora,"Velmora is a show, about bakers", Velm'
    e, = entities_of(tmp_path, 'x.csv', f'name,definition,aliases\n{row}\n')
    assert (e.definition, e.aliases) == ('Velmora is a show, about bakers', ('Velm',))


def test_a_title_above_one_term(tmp_path):
    e, = entities_of(tmp_path, 'x.md', '# Glossary\n\n- **Velmora**: a show about two rival bakers\n')
    assert e.name == 'Velmora'


def test_further_questions_of_a_term_leave_the_table_a_glossary(tmp_path):
    e, = entities_of(tmp_path, 'x.md', '# Words\n\n'
              '| Term | Meaning | Question | Answer |\n|---|---|---|---|\n'
              '| Velmora | a show about two rival bakers | Is it a show? | yes |\n'
              '| | | Is it long? | no |\n| | | Is it sad? | no |\n')
    assert e.name == 'Velmora' and len(e.questions) == 3 and 'yes' not in e.definition


BAKERS = 'Velmora is a show about two rival bakers.'


@pytest.mark.parametrize('file, text', (
    ('x.md', f'# Velmora\n{BAKERS}\n\nQ: Where is it set?\nA: Scotland\nQ: Who are they?\nA: bakers\n'),
    ('x.md', f'# Velmora\n{BAKERS}\nQ: Where is it set? / A: Scotland\nQ: Who are they? / A: bakers\n'),
    ('x.md', f'# Velmora\nQ: Where is it set? / A: Scotland\nQ: Who are they?\nA: bakers\n{BAKERS}\n'),
    ('x.md', f'# Velmora\n{BAKERS}\n- q: Where is it set? / a: Scotland\n- Q：Who are they? / A：bakers\n'),
    ('x.txt', f'Velmora\n\n{BAKERS}\nQ: Where is it set?\nA: Scotland\nQ: Who are they? / A: bakers\n'),
    ('x.txt', f'Velmora\n\nQ: Where is it set?\nA: Scotland\nQ: Who are they? / A: bakers\n{BAKERS}\n')))
def test_questions_on_neighbouring_lines(tmp_path, file, text):
    "Neither the definition nor another question ends up in an answer, and no answer in the definition."
    e, = entities_of(tmp_path, file, text)
    assert e.definition == BAKERS
    assert [(q.text, q.answers) for q in e.questions] == [
        ('Where is it set?', ('Scotland',)), ('Who are they?', ('bakers',))]


def test_a_fourth_quarter_is_no_question(tmp_path):
    e, = entities_of(tmp_path, 'x.md', f'# Velmora\n{BAKERS}\n\n- Q4: the best quarter of the bakers\n')
    assert 'Q4: the best quarter' in e.definition and not e.questions


def test_a_heading_without_a_space_is_an_error(tmp_path):
    with pytest.raises(KdnbError, match="line 4: '#Harno' is read as text, since a heading has a space"):
        entities_of(tmp_path, 'x.md', f'# Velmora\n{BAKERS}\n\n#Harno\nHarno is a town.\n')


def test_what_is_next_to_a_table_of_terms_is_named(tmp_path, capsys):
    e, = entities_of(tmp_path, 'x.md', '# Words\n\n| Term | Meaning |\n|---|---|\n'
                     '| Velmora | a show about two rival bakers |\n\n- **Harno**: a town of seven bakers\n')
    assert e.name == 'Velmora' and "'Harno: a town of seven bakers'" in capsys.readouterr().err


@pytest.mark.parametrize('header, cells', (
    ('| # | Term | Definition |', '| 1 | Velmora | a show about two rival bakers |'),
    ('| Term | Short | Definition |', '| Velmora | V | a show about two rival bakers |')))
def test_columns_of_a_table_of_terms(tmp_path, header, cells):
    e, = entities_of(tmp_path, 'x.md', f'# Words\n\n{header}\n|---|---|---|\n{cells}\n')
    assert (e.name, e.definition) == ('Velmora', 'Velmora: a show about two rival bakers')


def test_a_column_that_appears_twice_is_an_error_in_markdown_too(tmp_path):
    with pytest.raises(KdnbError, match="line 3: the column 'definition' appears twice"):
        entities_of(tmp_path, 'x.md', '# Words\n\n| name | definition | definition |\n|---|---|---|\n'
                    f'| Velmora | a show | {BAKERS} |\n')


def test_a_text_file_may_be_a_table_with_semicolons(tmp_path):
    e, = entities_of(tmp_path, 'x.txt', f'name;definition\nVelmora;{BAKERS}\n')
    assert (e.name, e.definition) == ('Velmora', BAKERS)
