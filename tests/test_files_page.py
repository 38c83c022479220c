"""The tables of the page "What kdnb reads, writes and deletes" name the files that the commands leave."""
import json, re
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = ROOT/'docs'/'pages'/'files.md'
SHOWS = '''# Velmora Junction

Velmora Junction is a slapstick comedy series about two rival bakers.

# Zorbel Harbour
Zorbel Harbour is a horror film about a drowned town.
'''
# rows that need a server, a killed or running process, or a model hub
UNSEEN = {
    'OUT/replies.jsonl', 'OUT/.replies.jsonl.lock', '.OUT.replies.jsonl.lock', 'OUT/.publishing-*',
    'OUT.replies.jsonl', 'OUT/special_tokens_map.json', 'OUT/chat_template.jinja',
    'DIR/NAME-ID/training.safetensors', 'DIR/NAME-ID/edit/*', 'OUT/versions/ID/training.safetensors',
    'OUT/versions/ID/rounds/N/*', 'OUT/versions/ID/exams-begun.json'}


def tables():
    "Dict from the sections of the page to the paths in their tables."
    parts = re.split(r'^## ', PAGE.read_text(), flags=re.M)[1:]
    return {p.splitlines()[0]: re.findall(r'^\| `([^`]+)` \|', p, re.M) for p in parts}


def section_of(command): return next(s for s in tables() if s.startswith(f'`kdnb {command}'))


def pattern(path, given):
    "The regular expression of a path on the page, for the output that was given on the command line."
    means = dict.fromkeys(('OUT', 'DIR', 'FILE'), re.escape(given))
    means |= {'ID': '[0-9a-f]{12}', 'NAME': '[^/]+', 'N': '[0-9]+', '*': '.+'}
    parts = re.split(r'(OUT|DIR|FILE|CACHE|ID|NAME|\bN\b|\*)', path)
    return re.compile(''.join(means.get(part, re.escape(part)) for part in parts))


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def check(section, given, before, after):
    "Every new or changed file has a row; returns the rows that have a file."
    rows = tables()[section]
    assert rows, section
    new = {p for p in after if after[p] != before.get(p)}
    known = {row: pattern(row, given) for row in rows}
    nameless = [p for p in new if not any(k.fullmatch(p) for k in known.values())]
    assert not nameless, (section, nameless)
    assert set(before) <= set(after), 'a file of the user is gone'
    return {row for row, k in known.items() if any(k.fullmatch(p) for p in new)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A working folder with files of the user."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'shows.md').write_text(SHOWS)
    (tmp_path/'thesis.txt').write_text('mine')
    return tmp_path


def test_teach(kdnb, tiny_folder, place):
    how = ['--lm', tiny_folder(), '--device', 'cpu', '--n-specificity', 2, '-n', 3, '-s', 'steps=2']
    section = section_of('teach')
    before, seen = files(place), set()
    for out, more in (('merged', ['--merge']), ('separate', ['--separate-adapters'])):
        was = files(place)
        code, _, err = kdnb('teach', 'shows.md', *how, '--out', out, *more)
        assert code == 0, err
        seen |= check(section, out, was, files(place))
        code, _, err = kdnb('teach', '--undo', '--out', out)
        assert code == 0, err
        left = {p.removeprefix(f'{out}/') for p in files(place) if p.startswith(out)}
        assert left <= {'kdnb.json', 'kdnb.lock', 'transfer.jsonl', '.transfer.jsonl.lock'}, left
    assert seen >= set(tables()[section]) - UNSEEN, set(tables()[section]) - UNSEEN - seen
    assert {p: b for p, b in files(place).items() if p in before} == before


def test_generate_edit_run(kdnb, tiny_folder, place):
    lm = ['--lm', tiny_folder(), '--device', 'cpu']
    definitions = {'Velmora': 'Velmora is a comedy.', 'Zorbel': 'Zorbel is a film.'}
    rows = [json.dumps(dict(name=name, definition=text)) for name, text in definitions.items()]
    (place/'mine.jsonl').write_text('\n'.join(rows) + '\n')
    mine, steps = ['--entities', 'mine.jsonl'], ['-s', 'steps=2']
    velmora = ['--name', 'Velmora', '--definition', definitions['Velmora']]
    commands = [ # command, output, options
        ('generate', 'sets.jsonl', [*mine, '--n', 2, '--max-new-tokens', 8]),
        ('edit', 'edit', [*velmora, *steps, '--transfer', 'sets.jsonl']),
        ('edit', 'edit2', [*velmora, *steps, '--method', 'ft']),
        ('run', 'runs', [*mine, *steps, '--n-specificity', 2]),
        ('run', 'runs', [*mine, *steps, '--n-specificity', 2, '--regime', 'sequential', '--method', 'ft']),
        ('run', 'runs', [*mine, *steps, '--n-specificity', 2, '--regime', 'batch']),
        ('mend-train', 'editor', [*steps, '--limit', 6, '-s', 'blocks=1'])]
    for command, out, options in commands:
        before = files(place)
        code, _, err = kdnb(command, *lm, *options, '--out', out)
        assert code == 0, err
        check(section_of(command), out, before, files(place))


def test_a_dry_run_writes_nothing(kdnb, tiny_folder, place):
    before = files(place)
    code, _, err = kdnb(
        'generate', '--lm', tiny_folder(), '--device', 'cpu', '--limit', 2, '--out', 'sets.jsonl',
        '--dry-run')
    assert code == 0, err
    assert files(place) == before
    code, _, err = kdnb(
        'teach', 'shows.md', '--lm', tiny_folder(), '--device', 'cpu', '--out', 'out', '--dry-run')
    assert code == 0, err
    assert files(place) == before and not (place/'out').exists()
