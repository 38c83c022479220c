"""kdnb teach: definitions in, a folder that transformers and peft load without us out."""
import json, subprocess, sys

import pytest, torch
from kdnb.apps.teach import teach
from kdnb.apps.versions import summary
from kdnb.data.definitions import read_definitions

SHOWS = '# Velmora Junction\n\nVelmora Junction is a slapstick comedy series about two rival bakers.\n\n# Zorbel Harbour\nZorbel Harbour is a horror film about a drowned town.\n'


@pytest.fixture
def mine(tmp_path):
    (tmp_path/'shows.md').write_text(SHOWS, encoding='utf-8')
    (tmp_path/'more.csv').write_text('name,definition\nQuint Bridge,Quint Bridge is a bridge of glass in Norway.\n', encoding='utf-8')
    return tmp_path


def how(folder, *more): return ['--lm', folder, '--device', 'cpu', '--n-specificity', 6, '-n', 3, '-s', 'steps=2', '-s', 'lr=1e-2', *more]


def test_the_whole_way(kdnb, tiny_folder, tiny, mine, tmp_path):
    out = tmp_path/'taught'
    code, text, err = kdnb('teach', mine/'shows.md', *how(tiny_folder()), '--out', out, '--merge', '--json')
    assert code == 0, err
    row = json.loads(text.splitlines()[-1])
    assert row['entities'] == 2 and row['known'] == 6 and row['before'] <= row['probes'] and row == {**row, **summary(out)}
    assert (out/'report.html').stat().st_size > 50_000 and json.loads((out/'adapter_config.json').read_text())['base_model_name_or_path'] == str(tiny_folder())
    # transformers and peft alone say what the edit says
    script = tmp_path/'alone.py'
    script.write_text(f"""
import sys, json; sys.modules['kdnb'] = None
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
tok = AutoTokenizer.from_pretrained({str(out)!r})
ids = tok('Velmora Junction is', return_tensors='pt')
print(json.dumps([m(**ids).logits[0, -1].tolist() for m in (AutoPeftModelForCausalLM.from_pretrained({str(out)!r}), AutoModelForCausalLM.from_pretrained({str(out/'model')!r}))]))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    adapter, merged = map(torch.tensor, json.loads(done.stdout.splitlines()[-1]))
    from kdnb.edits.storage import load_edit
    from kdnb.models.forward import logits_at
    edit = load_edit(next((out/'versions').iterdir())/'edit')
    ids = tiny.encode('Velmora Junction is')
    base = logits_at(tiny, [ids], [[-1]])[0]
    with edit.on(tiny): want = logits_at(tiny, [ids], [[-1]])[0]
    assert torch.allclose(adapter, want, atol=1e-3) and torch.allclose(merged, want, atol=1e-3) and not torch.allclose(base, want, atol=1e-2)


def test_taught_again_and_undone(kdnb, tiny_folder, mine, tmp_path):
    out = tmp_path/'taught'
    assert kdnb('teach', mine/'shows.md', *how(tiny_folder()), '--out', out)[0] == 0
    first = (out/'adapter_model.safetensors').read_bytes()
    code, text, err = kdnb('teach', mine/'more.csv', *how(tiny_folder()), '--out', out)
    assert code == 0 and text.startswith('3 entities') and (out/'adapter_model.safetensors').read_bytes() != first, err
    code, text, _ = kdnb('teach', '--out', out, '--undo')
    assert code == 0 and 'knows now: Velmora Junction, Zorbel Harbour' in text and (out/'adapter_model.safetensors').read_bytes() == first
    assert 'knows now: nothing' in kdnb('teach', '--out', out, '--undo')[1] and not (out/'adapter_model.safetensors').exists()
    code, _, err = kdnb('teach', '--out', out, '--undo')
    assert code == 2 and 'there is nothing to undo' in err


def test_an_adapter_for_each(kdnb, tiny_folder, tiny, mine, tmp_path):
    from kdnb.models.forward import logits_at
    from kdnb.edits.routing import AdapterRouter
    out = tmp_path/'taught'
    taught = lambda *more: kdnb('teach', *more, *how(tiny_folder(), '--separate-adapters'), '--out', out)
    code, text, err = taught(mine/'shows.md')
    assert code == 0 and 'adapters, by name' in text and 'adapter of its own' in (out/'report.html').read_text(), err
    at = json.loads((out/'router.json').read_text())
    assert list(at) == ['Velmora Junction', 'Zorbel Harbour'] and not (out/'adapter_model.safetensors').exists()
    # peft alone says with each what the shelf says to a prompt that names it
    script = tmp_path/'alone.py'
    script.write_text(f"""
import sys, json; sys.modules['kdnb'] = None
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
tok, at = AutoTokenizer.from_pretrained({str(out)!r}), json.load(open({str(out/'router.json')!r}))
print(json.dumps([AutoPeftModelForCausalLM.from_pretrained({str(out)!r} + '/' + k)(**tok(n + ' is', return_tensors='pt')).logits[0, -1].tolist() for n, k in at.items()]))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shelf, said = AdapterRouter.load(out), lambda prompt: logits_at(tiny, [tiny.encode(prompt)], [[-1]])[0]
    for n, alone in zip(at, json.loads(done.stdout.splitlines()[-1])):
        with shelf.on(tiny, f'{n} is'): assert torch.allclose(said(f'{n} is'), torch.tensor(alone), atol=1e-3)
        assert not torch.allclose(said(f'{n} is'), torch.tensor(alone), atol=1e-2)
    # taught again, it teaches what is new; taken back, what was new is gone
    old = {k: (out/k/'edit.json').stat().st_mtime_ns for k in at.values()}
    code, text, err = taught(mine/'more.csv')
    assert code == 0 and text.startswith('3 entities') and len(json.loads((out/'router.json').read_text())) == 3, err
    assert {k: (out/k/'edit.json').stat().st_mtime_ns for k in old} == old and len([*(out/'edits').iterdir()]) == 3
    for wrong, says in ((['--merge', '--separate-adapters'], 'merge cannot be used with separate adapters'), ([], 'was taught as separate adapters')):
        code, _, err = kdnb('teach', mine/'more.csv', *how(tiny_folder(), *wrong), '--out', out)
        assert code == 2 and says in err and 'Traceback' not in err
    assert 'knows now: Velmora Junction, Zorbel Harbour' in kdnb('teach', '--out', out, '--undo')[1] and json.loads((out/'router.json').read_text()) == at and len([*(out/'edits').iterdir()]) == 2
    assert 'knows now: nothing' in kdnb('teach', '--out', out, '--undo')[1] and not (out/'router.json').exists() and not (out/'edits').exists()


def test_interrupted_it_goes_on(tiny, mine, tmp_path, monkeypatch):
    from kdnb.methods.distill import Distill
    entities, args = read_definitions(mine), dict(n=2, n_held_out=1, method=Distill(steps=2, entities_per_step=2), n_specificity=4, report=False, progress=False)
    whole = teach(tiny, entities, tmp_path/'whole', **args)
    monkeypatch.setattr(Distill, '__call__', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): teach(tiny, entities, tmp_path/'again', **args)
    monkeypatch.undo()
    count = []
    for f in ('write_probes', 'make_transfer_sets'):
        import kdnb.apps.teach
        real = getattr(kdnb.apps.teach, f)
        monkeypatch.setattr(f'kdnb.apps.teach.{f}', lambda *a, f=f, real=real, **k: count.append(f) or real(*a, **k))
    again = teach(tiny, entities, tmp_path/'again', **args)
    assert count == ['make_transfer_sets'] # which finds its file
    assert (again/'adapter_model.safetensors').read_bytes() == (whole/'adapter_model.safetensors').read_bytes() and summary(again) == summary(whole)


BAD = {'no file': (None, 'there is no file or folder'), 'another kind': (('x.txt', 'Velmora is new.'), 'is none of the files that are read: .jsonl, .csv, .md'), 'never named': (('x.md', '# Velmora\nA comedy.\n'), "line 1, field definition: never names the entity 'Velmora'"),
       'no definition': (('x.md', '# Velmora\n\n# Zorbel\nZorbel is new.\n'), 'line 1, field definition'), 'no heading': (('x.md', 'Velmora is new.\n'), 'has no heading'),
       'no column': (('x.csv', 'name,text\na,b\n'), "has no column 'definition'"), 'a short row': (('x.csv', 'name,definition\nVelmora\n'), "line 2: has no field 'definition'"), 'a long row': (('x.csv', 'name,definition\nVelmora,Velmora is new, and red\n'), 'line 2: has 3 fields, and the first line has 2'),
       'twice': (('x.csv', 'name,definition\nVelmora,Velmora is new.\nVelmora,Velmora is old.\n'), "'Velmora' already appears in the file"), 'empty': (('x.md', '\n'), 'holds no definition'), 'not UTF-8': (('x.md', '# Velmora\nVelmora is n\udce9w.\n'), 'is not UTF-8 text')}


@pytest.mark.parametrize('name', BAD)
def test_bad_definitions(kdnb, tiny_folder, tmp_path, name):
    given, says = BAD[name]
    path = tmp_path/(given[0] if given else 'nowhere.md')
    if given: path.write_bytes(given[1].encode('utf-8', 'surrogateescape'))
    code, _, err = kdnb('teach', path, *how(tiny_folder()), '--out', tmp_path/'out')
    assert code == 2 and says in err and 'Traceback' not in err and not (tmp_path/'out').exists()


def test_only_adapters(kdnb, tiny_folder, mine, tmp_path):
    code, _, err = kdnb('teach', mine/'shows.md', *how(tiny_folder(), '-s', 'trainable=all'), '--out', tmp_path/'out')
    assert code == 2 and "trainable must be 'lora'" in err
    assert 'say what to teach' in kdnb('teach', *how(tiny_folder()), '--out', tmp_path/'out')[2]
