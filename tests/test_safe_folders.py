"""kdnb records the files that it makes in a folder, and replaces, deletes and follows nothing else."""
import hashlib, json, os, subprocess, sys
from pathlib import Path

import pytest
from kdnb.data.definitions import read_definitions
from kdnb.methods.distill import Distill
from kdnb.core.errors import KdnbError
from kdnb.core.files import inside, write_json, write_text
from kdnb.core.jsonl import read_lines, repair_jsonl
from kdnb.core.records import locked
from kdnb.edits.routing import AdapterRouter
from kdnb.apps.teach import teach
from kdnb.apps.versions import undo_teaching

SHOWS = '''# Velmora Junction

Velmora Junction is a slapstick comedy series about two rival bakers.

# Zorbel Harbour
Zorbel Harbour is a horror film about a drowned town.
'''
MORE = '# Quint Bridge\nQuint Bridge is a bridge of glass in Norway.\n'
HOW = dict(
    n=3, method=Distill(steps=2, entities_per_step=2), n_specificity=2, progress=False)


def entities(folder, text=SHOWS):
    path = folder/f'{len(text)}.md'
    path.write_text(text, encoding='utf-8')
    return read_definitions(path)


def tree(folder):
    "Dict from the paths in a folder to hashes of the files ('' for a folder)."
    sha256 = lambda p: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ''
    return {p.relative_to(folder).as_posix(): sha256(p) for p in sorted(Path(folder).rglob('*'))}


def versions_of(out): return json.loads((out/'kdnb.json').read_text())['versions']


def published_base(out): return json.loads((out/'adapter_config.json').read_text())['base_model_name_or_path']


@pytest.fixture
def victim(tmp_path):
    folder = tmp_path/'victim'
    folder.mkdir()
    (folder/'thesis.txt').write_text('years of work')
    return folder


@pytest.mark.parametrize('wrong', (
    '../../victim', '/etc', '', '.', '..', 'x'*12, '0123456789AB', 'a/../../victim', 7, None,
    ['0123456789ab'], {'id': 1}))
def test_a_version_that_is_no_id_is_refused_and_nothing_is_deleted(kdnb, tmp_path, victim, wrong):
    out = tmp_path/'deep'/'out'
    out.mkdir(parents=True)
    note = dict(versions=[wrong], files={}, lm='x', base='x', separate_adapters=False)
    write_json(out/'kdnb.json', note)
    before = tree(tmp_path)
    code, _, err = kdnb('teach', '--undo', '--out', out)
    assert code == 2 and 'Traceback' not in err and err.count('\n') == 1
    assert {k: v for k, v in tree(tmp_path).items() if not k.endswith('kdnb.lock')} == before


@pytest.mark.parametrize(
    'wrong', ('../../victim', '../victim/thesis.txt', '/etc/passwd', 'versions/../../../victim'))
def test_a_recorded_file_outside_the_folder_is_refused(kdnb, tmp_path, victim, wrong):
    out = tmp_path/'deep'/'out'
    out.mkdir(parents=True)
    write_json(out/'kdnb.json', {'versions': ['0123456789ab'], 'files': {wrong: 'folder'}})
    code, _, err = kdnb('teach', '--undo', '--out', out)
    assert code == 2 and 'is not a path inside' in err and (victim/'thesis.txt').exists()


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path, victim):
    out = tmp_path/'out'
    out.mkdir()
    (out/'model').symlink_to(victim)
    with pytest.raises(KdnbError, match='is not a path inside'): inside(out, 'model/thesis.txt')
    (out/'versions').mkdir()
    (out/'versions'/'0123456789ab').symlink_to(victim)
    write_json(out/'kdnb.json', {'versions': ['0123456789ab'], 'files': {'versions/0123456789ab': 'folder'}})
    with pytest.raises(KdnbError): undo_teaching(out)
    assert (victim/'thesis.txt').exists()


@pytest.mark.parametrize('place', ('../victim', '/etc', 'edits/../../victim', 3, None))
def test_a_router_reads_nothing_outside_its_folder(tmp_path, victim, place):
    (victim/'edit.json').write_text('{}')
    out = tmp_path/'out'
    out.mkdir()
    write_json(out/'router.json', {'Velmora': place})
    with pytest.raises(KdnbError, match='is not a place that kdnb gives'): AdapterRouter.load(out)


def test_undo_leaves_the_users_own_files(tiny, tmp_path):
    out = tmp_path/'out'
    for name in ('model/mine.txt', 'edits/mine/edit.json', 'versions/notes.txt', 'thesis.txt'):
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        (out/name).write_text('mine')
    mine = tree(out)
    teach(tiny, entities(tmp_path), out, **HOW)
    assert {'adapter_model.safetensors', 'README.md', 'tokenizer.json'} <= set(tree(out))
    assert undo_teaching(out) == []
    left = tree(out)
    assert {k: v for k, v in left.items() if k in mine} == mine
    assert set(left) - set(mine) == {'kdnb.json', 'kdnb.lock', 'transfer.jsonl', '.transfer.jsonl.lock'}


def test_undo_of_a_merged_model_deletes_the_files_that_were_made(tiny, tmp_path):
    out = tmp_path/'out'
    teach(tiny, entities(tmp_path), out, merge=True, **HOW)
    assert (out/'model'/'model.safetensors').exists()
    (out/'model'/'eval.txt').write_text('mine')
    undo_teaching(out)
    assert [p.name for p in (out/'model').iterdir()] == ['eval.txt']


def test_a_file_that_was_changed_since_is_neither_replaced_nor_deleted(tiny, tmp_path, capsys):
    out = tmp_path/'out'
    teach(tiny, entities(tmp_path), out, **HOW)
    (out/'README.md').write_text('my own words')
    with pytest.raises(KdnbError, match='README.md was changed since kdnb wrote it'):
        teach(tiny, entities(tmp_path, MORE), out, **HOW)
    undo_teaching(out)
    assert (out/'README.md').read_text() == 'my own words'
    assert 'README.md' in capsys.readouterr().err and not (out/'adapter_config.json').exists()


@pytest.mark.parametrize('name', (
    'adapter_model.safetensors', 'adapter_config.json', 'README.md', 'report.html', 'tokenizer.json'))
def test_teach_does_not_replace_a_file_of_the_user(tiny, tmp_path, name):
    out = tmp_path/'out'
    out.mkdir()
    (out/name).write_text('mine')
    with pytest.raises(KdnbError, match='was not made by kdnb, so it is not replaced'):
        teach(tiny, entities(tmp_path), out, **HOW)
    assert (out/name).read_text() == 'mine' and tree(out).keys() == {name} # before any work


def test_the_folder_of_the_base_model_is_never_an_output_folder(kdnb, tiny_folder, tmp_path):
    import shutil
    from kdnb.models.model import load_lm
    base = tmp_path/'out'/'model'
    shutil.copytree(tiny_folder(), base)
    before = tree(base)
    lm = load_lm(str(base), device='cpu')
    with pytest.raises(KdnbError, match='was not made by kdnb'):
        teach(lm, entities(tmp_path), tmp_path/'out', merge=True, **HOW)
    with pytest.raises(KdnbError, match='is the folder of the base model itself'):
        teach(lm, entities(tmp_path), base, **HOW)
    assert tree(base) == before


HOLD_LOCK = '''
import sys
from kdnb.core.records import locked
with locked(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
'''


def test_the_second_of_two_teachings_into_one_folder_is_refused(tiny, tmp_path):
    out = tmp_path/'out'
    out.mkdir()
    command = [sys.executable, '-c', HOLD_LOCK, str(out)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(KdnbError, match='another kdnb is working on'):
            teach(tiny, entities(tmp_path), out, **HOW)
        assert not (out/'adapter_config.json').exists()
    finally:
        other.kill()
        other.wait()
    teach(tiny, entities(tmp_path), out, **HOW) # a lock ends with its process
    with locked(out), pytest.raises(KdnbError, match='another kdnb'): undo_teaching(out)


def test_undo_publishes_the_base_model_of_the_remaining_version(tiny_folder, tmp_path):
    from kdnb.models.model import load_lm
    a, b = (load_lm(str(tiny_folder(k)), device='cpu') for k in ('llama', 'qwen2'))
    out = tmp_path/'out'
    teach(a, entities(tmp_path), out, **HOW)
    teach(b, entities(tmp_path, MORE), out, **HOW)
    assert published_base(out) == b.name
    assert undo_teaching(out) == ['Velmora Junction', 'Zorbel Harbour']
    assert published_base(out) == a.name
    note = json.loads((out/'kdnb.json').read_text())
    assert note['lm_sha256'] == a.sha256 and note['base'] == a.name


def test_a_relative_base_is_found_from_everywhere_also_by_the_card(tiny_folder, tmp_path, monkeypatch):
    import shutil
    from kdnb.models.model import load_lm
    shutil.copytree(tiny_folder(), tmp_path/'base')
    monkeypatch.chdir(tmp_path)
    out = teach(load_lm('base', device='cpu'), entities(tmp_path), 'out', **HOW)
    assert published_base(out) == str(tmp_path/'base')
    shutil.move(tmp_path/'out', tmp_path/'moved') # as to another machine
    card = (tmp_path/'moved'/'README.md').read_text()
    code = card.split('```python')[1].split('```')[0].replace("folder = '.'", "folder = 'moved'")
    command = [sys.executable, '-c', f'{code}\nprint(type(model).__name__)']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == 'PeftModelForCausalLM\n', done.stderr


# undoes a teaching, and ends the process before the n-th change of the file system
KILL = """
import json, os, sys
from kdnb.apps.versions import undo_teaching
count = 0
def wrap(name):
    real = getattr(os, name)
    def f(*a, **k):
        global count
        if count == int(sys.argv[2]): os._exit(77)
        count += 1
        return real(*a, **k)
    setattr(os, name, f)
for name in ('replace', 'unlink', 'mkdir', 'rmdir'): wrap(name)
undo_teaching(sys.argv[1])
"""


@pytest.mark.parametrize('separate_adapters', (False, True))
def test_undo_completes_a_killed_undo_and_takes_back_one_teaching(tiny, tmp_path, separate_adapters):
    import shutil
    method = Distill(steps=2, entities_per_step=1 if separate_adapters else 2)
    how = {**HOW, 'separate_adapters': separate_adapters, 'method': method}
    once, twice, x = tmp_path/'once', tmp_path/'twice', tmp_path/'x'
    teach(tiny, entities(tmp_path), once, **how)
    shutil.copytree(once, twice)
    teach(tiny, entities(tmp_path, MORE), twice, **how)
    (twice/'versions'/versions_of(twice)[-1]/'notes.txt').write_text('mine')
    unpublished = 'kdnb.json', 'kdnb.lock', 'transfer.jsonl', '.transfer.jsonl.lock'
    def published(folder):
        return {k: v for k, v in tree(folder).items() if v and '/' not in k and k not in unpublished}
    for kill in range(1, 60, 9):
        shutil.rmtree(x, ignore_errors=True)
        shutil.copytree(twice, x)
        done = subprocess.run([sys.executable, '-c', KILL, str(x), str(kill)], capture_output=True, text=True)
        if done.returncode == 0: break
        assert done.returncode == 77, done.stderr
        if len(versions_of(x)) == 2: undo_teaching(x)
        assert published(x) == published(once), kill
        assert len(versions_of(x)) == 1
        assert not list(x.rglob('*.tmp')) and not list(x.glob('.publishing*'))
        assert [p.name for p in x.rglob('notes.txt')] == ['notes.txt']
    assert kill > 10


def test_teaching_without_merge_removes_the_merged_model_with_a_note(tiny, tmp_path, capsys):
    out = tmp_path/'out'
    teach(tiny, entities(tmp_path), out, merge=True, **HOW)
    teach(tiny, entities(tmp_path, MORE), out, **HOW)
    assert not (out/'model').exists() and 'teach with --merge to write it again' in capsys.readouterr().err


def test_undo_with_a_changed_card_undoes_the_rest(tiny, tmp_path):
    out = tmp_path/'out'
    teach(tiny, entities(tmp_path), out, **HOW)
    first = tree(out)['adapter_model.safetensors']
    teach(tiny, entities(tmp_path, MORE), out, **HOW)
    (out/'README.md').write_text('mine')
    assert undo_teaching(out) == ['Velmora Junction', 'Zorbel Harbour']
    assert (out/'README.md').read_text() == 'mine' and tree(out)['adapter_model.safetensors'] == first


def test_an_edit_is_not_saved_in_the_folder_of_a_model(kdnb, tiny_folder, tmp_path):
    import shutil
    shutil.copytree(tiny_folder(), tmp_path/'lm')
    before = tree(tmp_path/'lm')
    code, _, err = kdnb(
        'edit', '--lm', tmp_path/'lm', '--device', 'cpu', '--name', 'Velmora',
        '--definition', 'Velmora is a comedy.', '--out', tmp_path/'lm')
    assert code == 2 and 'holds a model (config.json)' in err and tree(tmp_path/'lm') == before


def test_definitions_are_not_taught_into_their_own_folder(kdnb, tiny_folder, tmp_path):
    (tmp_path/'x.md').write_text(SHOWS)
    for out in (tmp_path, tmp_path/'out'):
        code, _, err = kdnb('teach', tmp_path, '--lm', tiny_folder(), '--device', 'cpu', '--out', out)
        assert code == 2 and 'lies in the folder of definitions' in err and tree(tmp_path).keys() == {'x.md'}


ZZ = '{"lm": "x", "path": "p", "kind": "zz", "sha256": "s"}'


@pytest.mark.parametrize('file, text, says', (
    ('exams.json', '[]', 'holds a list: it must hold an object'),
    ('base_model.json', ZZ, "unknown kind of a base model 'zz'"),
    ('edit/adapter_model.safetensors', None, 'adapter_model.safetensors is missing')))
def test_a_damaged_version_is_one_sentence_and_no_file_changes(tiny, tmp_path, file, text, says):
    out = tmp_path/'out'
    teach(tiny, entities(tmp_path), out, **HOW)
    first = versions_of(out)[0]
    if file != 'exams.json': teach(tiny, entities(tmp_path, MORE), out, **HOW)
    path = out/'versions'/first/file
    path.write_text(text) if text else path.unlink()
    without_record = lambda: {k: v for k, v in tree(out).items() if k != 'kdnb.json'}
    before = without_record()
    with pytest.raises(KdnbError, match=says):
        if file == 'exams.json': teach(tiny, entities(tmp_path), out, **HOW)
        else: undo_teaching(out)
    assert without_record() == before


def test_a_page_that_fails_loses_nothing(tiny, tmp_path, monkeypatch):
    "The same call makes it from the stored results, without teaching again."
    out = tmp_path/'out'
    with monkeypatch.context() as m:
        m.setattr('kdnb.apps.teach.teach_page', lambda *a: 1/0)
        with pytest.raises(ZeroDivisionError): teach(tiny, entities(tmp_path), out, **HOW)
    monkeypatch.setattr(Distill, '__call__', lambda *a: 1/0)
    teach(tiny, entities(tmp_path), out, **HOW)
    assert (out/'adapter_model.safetensors').exists() and (out/'report.html').exists()


FULL = '''
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN) # a write past the limit fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from kdnb.apps.cli import main
sys.exit(main(sys.argv[2:]))
'''


@pytest.mark.parametrize(
    'size', (3_000, *(pytest.param(s, marks=pytest.mark.slow) for s in (200, 30_000, 34_000))))
def test_a_full_disk_is_one_sentence_and_the_same_command_continues(tiny_folder, tmp_path, size):
    (tmp_path/'x.md').write_text(SHOWS)
    command = [
        'teach', str(tmp_path/'x.md'), '--lm', str(tiny_folder()), '--device', 'cpu',
        '--n-specificity', '2', '-n', '3', '-s', 'steps=2', '--out', str(tmp_path/'out')]
    def run(limit):
        limited = [sys.executable, '-c', FULL, str(limit), *command]
        return subprocess.run(limited, capture_output=True, text=True)
    full = run(size)
    said = [l for l in full.stderr.splitlines() if l.startswith('kdnb: ')]
    assert (full.returncode, len(said)) == (2, 1), full.stderr
    assert 'Traceback' not in full.stderr and full.stderr.count('File too large') == 1
    assert not list(tmp_path.rglob('*.tmp'))
    again = run(1 << 40)
    assert again.returncode == 0 and (tmp_path/'out'/'adapter_model.safetensors').exists(), again.stderr


OURS = '{"entity": "Velmora", "continuations": []}\n'


@pytest.mark.parametrize('text, after', (
    (OURS + '{"entity": "Zor', OURS),
    (OURS + '{"ent', OURS),
    ('{"entity": "Zorbel", "cont', ''),
    (OURS + '{', OURS),
    (OURS + '{"entity": "\u00e9'[:-1], OURS),
    (OURS.rstrip(), OURS),
    (OURS, OURS),
    ('', '')))
def test_an_unfinished_line_of_ours_is_cut_off(tmp_path, text, after):
    path = tmp_path/'sets.jsonl'
    path.write_text(text)
    found = [v for _, v, broken in read_lines(path, 'entity') if not broken]
    assert path.read_text() == text # reading changes nothing
    repair_jsonl(path, 'entity')
    assert path.read_text() == after and len(found) == after.count('\n')


@pytest.mark.parametrize('text', (
    'A title\nand the last line',
    'only one line',
    'name,definition\nVelmora,Velmora is',
    '{"name": "Velmora"}\n{"name": "Zo',
    '{"key": 1}',
    OURS + 'a line of somebody else\n{"entity": "x',
    OURS + '[1, 2',
    '\n\nx'))
def test_a_file_that_is_not_ours_stays_as_it_is(tmp_path, text):
    path, link = tmp_path/'thesis.txt', tmp_path/'sets.jsonl'
    path.write_text(text)
    link.symlink_to(path)
    for p in (path, link):
        with pytest.raises(KdnbError, match='left as it is'): repair_jsonl(p, 'entity')
    assert path.read_text() == text


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path/'x.json'
    write_json(path, {'a': 1})
    def full(f): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', full)
        with pytest.raises(KdnbError, match='No space left on device'): write_json(path, {'a': 2})
        with pytest.raises(KdnbError, match='No space left on device'): write_text(path, 'x')
    with pytest.raises(KdnbError, match='lone surrogate'): write_json(path, {'a': '\ud83d'})
    assert json.loads(path.read_text()) == {'a': 1} and tree(tmp_path).keys() == {'x.json'}


@pytest.mark.parametrize('name', ('adapter_model.safetensors', 'adapter_config.json', 'edit.json'))
def test_an_edit_is_not_saved_over_files_of_the_user(kdnb, tiny_folder, tmp_path, name):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/name).write_text('mine')
    edit = lambda trainable, out: kdnb(
        'edit', '--lm', tiny_folder(), '--device', 'cpu', '--name', 'Velmora',
        '--definition', 'Velmora is a comedy.', '--method', 'ft', '-s', 'steps=2',
        '-s', f'trainable={trainable}', '--out', out)
    code, _, err = edit('lora', tmp_path/'mine')
    assert code == 2 and 'was not made by kdnb, so it is not replaced' in err
    assert (tmp_path/'mine'/name).read_text() == 'mine'
    for _ in range(2): assert edit('lora', tmp_path/'ours')[0] == 0
    # saved again in another form, the folder holds nothing of the first one
    code, _, err = edit('last_block', tmp_path/'ours')
    assert code == 0 and (tmp_path/'ours'/'tensors.safetensors').exists(), err
    assert not (tmp_path/'ours'/'adapter_config.json').exists(), err


def test_a_model_folder_of_the_user_in_the_cache_folder_is_not_replaced(kdnb, tmp_path, monkeypatch):
    monkeypatch.setenv('KDNB_CACHE', str(tmp_path/'models'))
    (tmp_path/'models'/'smollm2').mkdir(parents=True)
    (tmp_path/'models'/'smollm2'/'model.safetensors').write_text('mine')
    code, _, err = kdnb('evaluate', '--method', 'base', '--device', 'cpu')
    assert code == 2
    assert 'was not made by kdnb, so it is not replaced: set KDNB_CACHE to another folder' in err
    assert (tmp_path/'models'/'smollm2'/'model.safetensors').read_text() == 'mine'


KEY = 'sk-proj-ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefgh'


@pytest.mark.parametrize('part', (KEY, KEY[:-1], KEY[:30], KEY[1:], KEY[-30:]))
def test_a_part_of_a_key_is_redacted(monkeypatch, part):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    said = str(KdnbError(f'the server says {part}'))
    assert said == 'the server says …'
    assert str(KdnbError('a key such as sk-proj-x')) == 'a key such as sk-proj-x'


def test_a_placeholder_for_a_key_damages_no_data(monkeypatch, tiny_folder, tmp_path):
    import shutil
    from kdnb.models.model import load_lm
    monkeypatch.setenv('OPENAI_API_KEY', 'definition')
    shutil.copytree(tiny_folder(), tmp_path/'definition'/'lm')
    lm = load_lm(str(tmp_path/'definition'/'lm'), device='cpu')
    out = teach(lm, entities(tmp_path), tmp_path/'out', **HOW)
    assert published_base(out) == lm.name
    assert '"definition"' in (out/'transfer.jsonl').read_text()
    teach(lm, entities(tmp_path), out, **HOW)


def test_control_characters_are_written_as_escapes():
    assert str(KdnbError('a\x1b[2Jb\rc\x07\u202e')) == r'a\x1b[2Jb\rc\x07\u202e'
    assert str(KdnbError('a\nb\t维')) == 'a\nb\t维'


@pytest.mark.parametrize('text', (
    '{"entity": "x", "continuations": []}\r{"entity": "y"',
    '{"entity": "Velmora", "note": "my important notes about it',
    '{"entity": nonsense here',
    OURS + '{"entity": "x"} and more'))
def test_a_line_that_is_no_beginning_of_our_rows_is_not_cut(tmp_path, text):
    (tmp_path/'x.jsonl').write_bytes(text.encode())
    with pytest.raises(KdnbError, match='left as it is'): repair_jsonl(tmp_path/'x.jsonl', 'entity')
    assert (tmp_path/'x.jsonl').read_bytes() == text.encode()


def test_every_beginning_of_our_rows_is_cut(tmp_path):
    row = (
        r'{"entity": "Vel \"mora\" \u00e9", "continuations": '
        '[{"text": "é 维", "mention": [0, 3], "prompt": ""}, {"text": "x", "mention": null}], '
        '"made_by": {"n": 1.5e-3, "a": true, "b": [false]}, "tries": 12}')
    path = tmp_path/'x.jsonl'
    for n in range(1, len(row.encode())):
        path.write_bytes(OURS.encode() + row.encode()[:n])
        repair_jsonl(path, 'entity')
        assert path.read_text() == OURS, row.encode()[:n]


def test_links_inside_a_version_are_not_followed(tiny, tmp_path, victim):
    out = tmp_path/'out'
    teach(tiny, entities(tmp_path), out, **HOW)
    first = versions_of(out)[0]
    teach(tiny, entities(tmp_path, MORE), out, **HOW)
    path = out/'versions'/first/'edit'/'adapter_model.safetensors'
    path.unlink()
    path.symlink_to(victim/'thesis.txt')
    with pytest.raises(KdnbError, match='is not a path inside'): undo_teaching(out)
    assert (out/'adapter_model.safetensors').read_bytes() != b'years of work'


def test_a_file_written_by_the_user_after_an_interruption_is_not_replaced(tiny, tmp_path, monkeypatch):
    out, real = tmp_path/'out', os.replace
    def stop(a, b):
        if Path(b) == out/'README.md': raise KeyboardInterrupt
        real(a, b)
    monkeypatch.setattr(os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt): teach(tiny, entities(tmp_path), out, **HOW)
    monkeypatch.undo()
    (out/'README.md').write_text('mine')
    with pytest.raises(KdnbError, match='README.md was changed since'):
        teach(tiny, entities(tmp_path), out, **HOW)
    (out/'README.md').unlink()
    teach(tiny, entities(tmp_path), out, **HOW)
    assert (out/'README.md').exists()
