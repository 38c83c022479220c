"""The page "What kdnb reads, writes and deletes" says what is true: commands are run, and what they leave is compared with its tables."""
import re
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = ROOT/'docs'/'pages'/'files.md'
SHOWS = '# Velmora Junction\n\nVelmora Junction is a slapstick comedy series about two rival bakers.\n\n# Zorbel Harbour\nZorbel Harbour is a horror film about a drowned town.\n'
# rows that a small run cannot show: a server, a process that was killed, a model hub
UNSEEN = {'OUT/replies.jsonl', 'OUT/.replies.jsonl.lock', '.OUT.replies.jsonl.lock', 'OUT/.publishing-*', 'OUT.replies.jsonl', 'OUT/special_tokens_map.json', 'OUT/chat_template.jinja', 'DIR/NAME-ID/training.safetensors', 'DIR/NAME-ID/edit/*'}


def tables(): # section -> paths of its table
    parts = re.split(r'^## ', PAGE.read_text(), flags=re.M)[1:]
    return {p.splitlines()[0]: re.findall(r'^\| `([^`]+)` \|', p, re.M) for p in parts}


def pattern(path, given): # of a path of the page, for what was given on the command line
    out = ''
    for part in re.split(r'(OUT|DIR|FILE|CACHE|ID|NAME|\*)', path):
        out += {'OUT': re.escape(given), 'DIR': re.escape(given), 'FILE': re.escape(given), 'ID': '[0-9a-f]{12}', 'NAME': '[^/]+', '*': '.+'}.get(part, re.escape(part))
    return re.compile(out)


def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def check(section, given, before, after):
    "Every file that is new or changed has a row, and every row that can be seen has a file."
    rows = tables()[section]
    assert rows, section
    new = {p for p in after if after[p] != before.get(p)}
    known = {row: pattern(row, given) for row in rows}
    nameless = [p for p in new if not any(k.fullmatch(p) for k in known.values())]
    assert not nameless, (section, nameless)
    assert set(before) <= set(after), 'a file of somebody else is gone'
    return {row for row, k in known.items() if any(k.fullmatch(p) for p in new)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'shows.md').write_text(SHOWS)
    (tmp_path/'thesis.txt').write_text('mine')
    return tmp_path


def test_teach(kdnb, tiny_folder, place):
    how, section = ['--lm', tiny_folder(), '--device', 'cpu', '--n-specificity', 2, '-n', 3, '-s', 'steps=2'], 'ignored'
    section = next(s for s in tables() if s.startswith('`kdnb teach'))
    before, seen = files(place), set()
    for out, more in (('together', ['--merge']), ('apart', ['--separate-adapters'])):
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
    (place/'mine.jsonl').write_text('{"name": "Velmora", "definition": "Velmora is a comedy."}\n{"name": "Zorbel", "definition": "Zorbel is a film."}\n')
    for command, given, argv in (
            ('`kdnb generate', 'sets.jsonl', ['generate', *lm, '--entities', 'mine.jsonl', '--n', 2, '--max-new-tokens', 8, '--out', 'sets.jsonl']),
            ('`kdnb edit', 'edit', ['edit', *lm, '--name', 'Velmora', '--definition', 'Velmora is a comedy.', '--transfer', 'sets.jsonl', '-s', 'steps=2', '--out', 'edit']),
            ('`kdnb edit', 'edit2', ['edit', *lm, '--name', 'Velmora', '--definition', 'Velmora is a comedy.', '--method', 'ft', '-s', 'steps=2', '--out', 'edit2']),
            ('`kdnb run', 'runs', ['run', *lm, '--entities', 'mine.jsonl', '--n-specificity', 2, '-s', 'steps=2', '--out', 'runs']),
            ('`kdnb run', 'runs', ['run', *lm, '--entities', 'mine.jsonl', '--n-specificity', 2, '-s', 'steps=2', '--out', 'runs', '--regime', 'sequential', '--method', 'ft']),
            ('`kdnb run', 'runs', ['run', *lm, '--entities', 'mine.jsonl', '--n-specificity', 2, '-s', 'steps=2', '--out', 'runs', '--regime', 'batch']),
            ('`kdnb mend-train', 'editor', ['mend-train', *lm, '--out', 'editor', '--limit', 6, '-s', 'steps=2', '-s', 'blocks=1'])):
        before = files(place)
        code, _, err = kdnb(*argv)
        assert code == 0, err
        section = next(s for s in tables() if s.startswith(command))
        check(section, given, before, files(place))


def test_a_dry_run_writes_nothing(kdnb, tiny_folder, place):
    before = files(place)
    assert kdnb('generate', '--lm', tiny_folder(), '--device', 'cpu', '--limit', 2, '--out', 'sets.jsonl', '--dry-run')[0] == 0
    assert files(place) == before
