"""`kdnb teach` writes a folder that transformers and peft load without kdnb."""
import json, subprocess, sys

import pytest, torch
from kdnb.apps.teach import teach
from kdnb.apps.versions import summary
from kdnb.data.definitions import read_definitions

SHOWS = '''# Velmora Junction

Velmora Junction is a slapstick comedy series about two rival bakers.

# Zorbel Harbour
Zorbel Harbour is a horror film about a drowned town.
'''
MORE = 'name,definition\nQuint Bridge,Quint Bridge is a bridge of glass in Norway.\n'


@pytest.fixture
def mine(tmp_path):
    "A folder with two files of definitions."
    (tmp_path/'shows.md').write_text(SHOWS, encoding='utf-8')
    (tmp_path/'more.csv').write_text(MORE, encoding='utf-8')
    return tmp_path


def how(folder, *more):
    return [
        '--lm', folder, '--device', 'cpu', '--n-specificity', 6, '-n', 3, '-s', 'steps=2',
        '-s', 'lr=1e-2', *more]


# both run without kdnb, and print logits after the prompt `NAME is`
ADAPTER_AND_MERGED = """
import json, sys
sys.modules['kdnb'] = None
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
out = sys.argv[1]
ids = AutoTokenizer.from_pretrained(out)('Velmora Junction is', return_tensors='pt')
adapter = AutoPeftModelForCausalLM.from_pretrained(out)
merged = AutoModelForCausalLM.from_pretrained(f'{out}/model')
print(json.dumps([m(**ids).logits[0, -1].tolist() for m in (adapter, merged)]))
"""
SEPARATE_ADAPTERS = """
import json, sys
sys.modules['kdnb'] = None
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
out = sys.argv[1]
tok, places = AutoTokenizer.from_pretrained(out), json.load(open(f'{out}/router.json'))
logits = []
for name, place in places.items():
    ids = tok(f'{name} is', return_tensors='pt')
    logits.append(AutoPeftModelForCausalLM.from_pretrained(f'{out}/{place}')(**ids).logits[0, -1].tolist())
print(json.dumps(logits))
"""


def logits_without_kdnb(script, out):
    done = subprocess.run([sys.executable, '-c', script, str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.tensor(x) for x in json.loads(done.stdout.splitlines()[-1])]


def test_peft_and_transformers_give_the_logits_of_the_edit(kdnb, tiny_folder, tiny, mine, tmp_path):
    from kdnb.edits.storage import load_edit
    from kdnb.models.forward import logits_at
    out = tmp_path/'taught'
    code, text, err = kdnb('teach', mine/'shows.md', *how(tiny_folder()), '--out', out, '--merge', '--json')
    assert code == 0, err
    row = json.loads(text.splitlines()[-1])
    assert row['entities'] == 2 and row['known'] == 6 and row['before'] <= row['probes']
    assert row == {**row, **summary(out)}
    assert (out/'report.html').stat().st_size > 50_000
    config = json.loads((out/'adapter_config.json').read_text())
    assert config['base_model_name_or_path'] == str(tiny_folder())
    adapter, merged = logits_without_kdnb(ADAPTER_AND_MERGED, out)
    edit = load_edit(next((out/'versions').iterdir())/'edit')
    ids = tiny.encode('Velmora Junction is')
    base = logits_at(tiny, [ids], [[-1]])[0]
    with edit.on(tiny): want = logits_at(tiny, [ids], [[-1]])[0]
    assert torch.allclose(adapter, want, atol=1e-3) and torch.allclose(merged, want, atol=1e-3)
    assert not torch.allclose(base, want, atol=1e-2)


def test_a_second_teaching_adds_and_undo_takes_it_back(kdnb, tiny_folder, mine, tmp_path):
    out = tmp_path/'taught'
    assert kdnb('teach', mine/'shows.md', *how(tiny_folder()), '--out', out)[0] == 0
    first = (out/'adapter_model.safetensors').read_bytes()
    code, text, err = kdnb('teach', mine/'more.csv', *how(tiny_folder()), '--out', out)
    assert code == 0 and text.startswith('3 entities'), err
    assert (out/'adapter_model.safetensors').read_bytes() != first, err
    code, text, _ = kdnb('teach', '--out', out, '--undo')
    assert code == 0 and 'knows now: Velmora Junction, Zorbel Harbour' in text
    assert (out/'adapter_model.safetensors').read_bytes() == first
    assert 'knows now: nothing' in kdnb('teach', '--out', out, '--undo')[1]
    assert not (out/'adapter_model.safetensors').exists()
    code, _, err = kdnb('teach', '--out', out, '--undo')
    assert code == 2 and 'there is nothing to undo' in err


def test_separate_adapters(kdnb, tiny_folder, tiny, mine, tmp_path):
    from kdnb.models.forward import logits_at
    from kdnb.edits.routing import AdapterRouter
    out = tmp_path/'taught'
    places = lambda: json.loads((out/'router.json').read_text())
    learn = lambda file: kdnb('teach', file, *how(tiny_folder(), '--separate-adapters'), '--out', out)
    code, text, err = learn(mine/'shows.md')
    assert code == 0 and 'adapters, by name' in text, err
    assert 'adapter of its own' in (out/'report.html').read_text(), err
    first = places()
    assert list(first) == ['Velmora Junction', 'Zorbel Harbour']
    assert not (out/'adapter_model.safetensors').exists()
    # each adapter gives in peft the logits of a routed prompt
    router = AdapterRouter.load(out)
    for name, want in zip(first, logits_without_kdnb(SEPARATE_ADAPTERS, out)):
        prompt = f'{name} is'
        logits = lambda: logits_at(tiny, [tiny.encode(prompt)], [[-1]])[0]
        with router.on(tiny, prompt): assert torch.allclose(logits(), want, atol=1e-3)
        assert not torch.allclose(logits(), want, atol=1e-2)
    # a second teaching adds an adapter, undo removes it
    changed = lambda: {place: (out/place/'edit.json').stat().st_mtime_ns for place in first.values()}
    before = changed()
    code, text, err = learn(mine/'more.csv')
    assert code == 0 and text.startswith('3 entities') and len(places()) == 3, err
    assert changed() == before
    assert len([*(out/'edits').iterdir()]) == 3
    wrong = {
        'merge cannot be used with separate adapters': ['--merge', '--separate-adapters'],
        'was taught as separate adapters': []}
    for says, options in wrong.items():
        code, _, err = kdnb('teach', mine/'more.csv', *how(tiny_folder(), *options), '--out', out)
        assert code == 2 and says in err and 'Traceback' not in err
    assert 'knows now: Velmora Junction, Zorbel Harbour' in kdnb('teach', '--out', out, '--undo')[1]
    assert places() == first
    assert len([*(out/'edits').iterdir()]) == 2
    assert 'knows now: nothing' in kdnb('teach', '--out', out, '--undo')[1]
    assert not (out/'router.json').exists() and not (out/'edits').exists()


def test_an_interrupted_teaching_continues(tiny, mine, tmp_path, monkeypatch):
    import kdnb.apps.teach as teaching
    from kdnb.methods.distill import Distill
    entities = read_definitions(mine)
    method = Distill(steps=2, entities_per_step=2)
    args = dict(n=2, n_held_out=1, method=method, n_specificity=4, report=False, progress=False)
    def interrupt(*args, **kwargs): raise KeyboardInterrupt
    whole = teach(tiny, entities, tmp_path/'whole', **args)
    with monkeypatch.context() as m:
        m.setattr(Distill, '__call__', interrupt)
        with pytest.raises(KeyboardInterrupt): teach(tiny, entities, tmp_path/'again', **args)
    called = []
    for name in ('write_probes', 'make_transfer_sets'):
        real = getattr(teaching, name)
        noted = lambda *a, name=name, real=real, **k: called.append(name) or real(*a, **k)
        monkeypatch.setattr(teaching, name, noted)
    again = teach(tiny, entities, tmp_path/'again', **args)
    assert called == ['make_transfer_sets'] # it finds its file
    weights = lambda folder: (folder/'adapter_model.safetensors').read_bytes()
    assert weights(again) == weights(whole)
    assert summary(again) == summary(whole)


# name and text of a file, and a part of the error
BAD = {
    'no file': (None, 'there is no file or folder'),
    'another kind': (('x.pdf', 'Velmora is new.'), 'is none of the files that are read: .jsonl, .csv, .md'),
    'never named': (
        ('x.jsonl', '{"name": "Velmora", "definition": "A comedy."}'),
        "line 1, field definition: never names the entity 'Velmora'"),
    'no definition': (('x.md', '# Velmora\n\n# Zorbel\nZorbel is new.\n'), 'line 1, field definition'),
    'no heading': (('x.md', 'Velmora is new.\n'), 'has no heading'),
    'no column': (('x.csv', 'name,text\na,b\n'), "has no column 'definition'"),
    'a short row': (('x.csv', 'name,definition\nVelmora\n'), "line 2: has no field 'definition'"),
    'a long row': (
        ('x.csv', 'name,definition\nVelmora,Velmora is new, and red\n'),
        'line 2: has 3 fields, and the first line has 2'),
    'twice': (
        ('x.csv', 'name,definition\nVelmora,Velmora is new.\nVelmora,Velmora is old.\n'),
        "'Velmora' already appears in the file"),
    'empty': (('x.md', '\n'), 'holds no definition'),
    'not UTF-8': (('x.md', '# Velmora\nVelmora is n\udce9w.\n'), 'is not UTF-8 text')}


@pytest.mark.parametrize('name', BAD)
def test_bad_definitions(kdnb, tiny_folder, tmp_path, name):
    given, says = BAD[name]
    path = tmp_path/(given[0] if given else 'nowhere.md')
    if given: path.write_bytes(given[1].encode('utf-8', 'surrogateescape'))
    code, _, err = kdnb('teach', path, *how(tiny_folder()), '--out', tmp_path/'out')
    assert code == 2 and says in err and 'Traceback' not in err and not (tmp_path/'out').exists()


def test_only_adapters_are_taught(kdnb, tiny_folder, mine, tmp_path):
    code, _, err = kdnb(
        'teach', mine/'shows.md', *how(tiny_folder(), '-s', 'trainable=all'), '--out', tmp_path/'out')
    assert code == 2 and "trainable must be 'lora'" in err
    assert 'say what to teach' in kdnb('teach', *how(tiny_folder()), '--out', tmp_path/'out')[2]


WORDS = '# Words\nWe.\n\n## Quint\nQuint is a bank.\n- Q: Where is Quint? / A: Norway; Oslo\n\n```\nx\n```\n'


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_a_dry_run_shows_what_would_be_taught_and_changes_nothing(kdnb, tiny_folder, tiny, mine, tmp_path):
    out = tmp_path/'taught'
    args = [*how(tiny_folder()), '--out', out]
    teach(tiny, read_definitions(mine/'shows.md'), out, n=2, n_held_out=1, n_specificity=2, report=False)
    (mine/'words.md').write_text(WORDS + '\n## Zorbel Harbour\nZorbel Harbour is a comedy.\n')
    before = snapshot(tmp_path)
    new = [*args[:-1], tmp_path.parent/'elsewhere']
    code, text, err = kdnb('teach', mine/'words.md', *new, '--dry-run')
    assert code == 0 and '(new; ' in text and 'known already' not in text, err
    code, text, err = kdnb('teach', mine/'words.md', *args, '--dry-run', '--json')
    assert code == 0 and snapshot(tmp_path) == before, err
    assert text.startswith(f'2 entities would be taught to {tiny_folder()}, into {out}:')
    assert 'Quint (new; 4 words, ' in text and 'question: Where is Quint? / Norway; Oslo' in text
    assert 'Zorbel Harbour (replaces another definition; 5 words' in text
    assert f'also known to {out}, and taught again with them: Velmora Junction' in text
    assert "words.md, line 1: the title 'Words' with the text below it (it is above the entities" in text
    assert 'words.md, line 8: a code block (code is no part of a definition)' in text
    assert 'nothing was changed' in text
    row = json.loads(text.splitlines()[-1])
    assert [(e['name'], e['questions']) for e in row['entities']] == [
        ('Quint', [{'text': 'Where is Quint?', 'answers': ['Norway', 'Oslo']}]), ('Zorbel Harbour', [])]
    assert [(r['line'], r['what']) for r in row['remarks']] == [
        (1, "the title 'Words' with the text below it"), (8, 'a code block')]
    assert row['minutes'] >= 0 and row['memory'] > 0 and set(row['seconds']) == {
        'writing texts', 'training', 'writing probes', 'measuring'}
    code, _, err = kdnb('teach', mine/'words.md', *args, '--dry-run', '--undo')
    assert code == 2 and '--dry-run and --undo were both given: give one of them' in err
    assert snapshot(tmp_path) == before
