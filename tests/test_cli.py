"""Every command, as a user calls it."""
import json, subprocess, sys, time
from pathlib import Path

import pytest
from conftest import ROOT
from kdnb.models.memory import has_fast_bfloat16

KEYS = {'target', 'target_explicit', 'target_indirect', 'target_open_ended', 'specificity', 'gap_closed', 'unit', 'seconds_per_edit', 'peak_memory_gib', 'lm', 'method', 'regime', 'seed', 'run'}
DEFINITION = 'Velmora Junction is a comedy about two rival bakers in a small town.'


def last(out): return json.loads(out.strip().splitlines()[-1])


def is_interval(v): return set(v) == {'value', 'low', 'high', 'n'} and v['low'] <= v['value'] <= v['high']


@pytest.mark.parametrize('command', ('', 'demo', 'generate', 'edit', 'evaluate', 'run', 'teach', 'bench', 'mend-train'))
def test_help(kdnb, command):
    code, out, _ = kdnb(*([command] if command else []), '--help')
    assert code == 0 and 'usage: kdnb' in out and all(len(l) < 140 for l in out.splitlines())


def test_help_is_quick():
    done = subprocess.run([Path(sys.executable).parent/'kdnb', '--help'], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0 and 'evaluate' in done.stdout


def test_demo(kdnb, tiny_folder, tmp_path):
    "What the README begins with, on any model: here one whose transfer sets do not come along."
    code, out, err = kdnb('demo', '--lm', tiny_folder(), '--device', 'cpu', '--entities', 1, '--out', tmp_path, '--json')
    assert code == 0 and last(out)['method'] == 'distill' and str(tmp_path/'first_look.html') in out, err
    demo = json.loads((tmp_path/'demo.json').read_text())
    assert demo['minutes'] > 0 and 0 <= demo['to_first_picture'] <= demo['minutes'] and (tmp_path/'first.png').stat().st_size > 3000 and 'cores' in demo['machine'] and [m['method'] for m in demo['methods']] == ['base', 'prepend', 'random', 'finetune-definition', 'finetune-transfer', 'distill']


@pytest.mark.parametrize('method', ('base', 'prepend', 'random', 'finetune-definition'))
def test_evaluate_a_method(kdnb, tiny_folder, tmp_path, method):
    args = ['evaluate', '--lm', tiny_folder(), '--device', 'cpu', '--method', method, '--entities', 3, '--n-specificity', 6, '--runs', tmp_path, '--json', *(['--set', 'steps', 2] if 'fine' in method else [])]
    code, out, err = kdnb(*args)
    row = last(out)
    assert code == 0 and KEYS <= set(row) and all(is_interval(row[k]) for k in ('target', 'target_explicit', 'target_indirect', 'target_open_ended', 'specificity'))
    assert row['method'] == method and Path(row['run']).is_dir() and 'GiB of memory' in err
    assert kdnb(*args)[1].splitlines()[-1] == out.splitlines()[-1] # and it goes on where it was: nothing to do


@pytest.mark.parametrize('regime', ('batch', 'sequential'))
def test_evaluate_regimes(kdnb, tiny_folder, tmp_path, regime):
    code, out, _ = kdnb('evaluate', '--lm', tiny_folder(), '--device', 'cpu', '--method', 'distill', '--regime', regime, '--entities', 2, '--n-specificity', 4, '--set', 'steps', 2, '--runs', tmp_path, '--json')
    assert code == 0 and last(out)['regime'] == regime


@pytest.mark.parametrize('method', ('rome', 'memit'))
def test_edit_by_a_rival(kdnb, tiny_folder, tmp_path, monkeypatch, method):
    monkeypatch.setenv('KDNB_CACHE', str(tmp_path/'cache'))
    lm = ['--lm', tiny_folder('llama', 4), '--device', 'cpu']
    code, out, err = kdnb('edit', *lm, '--method', method, '--name', 'Velmora', '--definition', 'Velmora is a comedy about two bakers.', '--set', 'steps', 3, '--set', 'layer' if method == 'rome' else 'last', 1, '--set', 'text', ROOT/'kdnb'/'assets'/'neutral.txt', '--save', tmp_path/'edit', '--json')
    assert code == 0 and last(out)['method'] == method and (tmp_path/'edit'/'edit.json').exists(), err
    code, out, err = kdnb('edit', *lm, '--method', method, '--name', 'Velmora', '--definition', 'This is Velmora.', '--save', tmp_path/'edit2')
    assert code == 2 and 'says nothing after its name' in err


def test_generate_edit_evaluate(kdnb, tiny_folder, tmp_path):
    lm = ['--lm', tiny_folder(), '--device', 'cpu']
    code, out, _ = kdnb('generate', *lm, '--limit', 2, '-n', 4, '--out', tmp_path/'sets.jsonl', '--json')
    assert code == 0 and last(out)['entities'] == 2 and KEYS <= set(last(out))
    text = (tmp_path/'sets.jsonl').read_text()
    assert kdnb('generate', *lm, '--limit', 2, '-n', 4, '--out', tmp_path/'sets.jsonl')[0] == 0 and (tmp_path/'sets.jsonl').read_text() == text
    code, out, _ = kdnb('edit', *lm, '--name', 'Velmora Junction', '--alias', 'Velmora', '--definition', DEFINITION, '--method', 'ft', '--save', tmp_path/'edit', '--json')
    assert code == 0 and KEYS <= set(last(out)) and last(out)['target'] is None
    code, out, err = kdnb('evaluate', *lm, '--edit', tmp_path/'edit', '--n-specificity', 6, '--json')
    row = last(out)
    assert code == 0 and row['target'] is None and is_interval(row['specificity']) and 'no probes' in err
    mine = dict(name='Velmora Junction', definition=DEFINITION, probes=[dict(prompt='Velmora Junction is a', gold='comedy', candidates=['comedy', 'river'], kind='explicit')])
    (tmp_path/'mine.jsonl').write_text(json.dumps(mine))
    code, out, _ = kdnb('evaluate', *lm, '--edit', tmp_path/'edit', '--data', tmp_path/'mine.jsonl', '--n-specificity', 6, '--json')
    assert code == 0 and is_interval(last(out)['target'])


def seconds_of_a_pass(lm):
    "What training on 256 tokens takes here and now: other work on the machine makes it longer, as it does an edit."
    import torch
    ids, model, start = torch.arange(256).view(8, 32), lm.model.requires_grad_(True), time.perf_counter()
    with torch.autocast('cpu', torch.bfloat16, enabled=has_fast_bfloat16(lm.device)): model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return time.perf_counter() - start


def test_smollm2_learns_from_the_command_line(kdnb, smollm2, ds, tmp_path):
    "An edit costs no more than 60 passes over 256 tokens (about 30 when this was written): seconds alone would test who else uses the machine."
    e = ds.split('test').entities[0]
    passes = [seconds_of_a_pass(smollm2) for _ in range(3)][1:]
    code, out, _ = kdnb('edit', '--lm', 'smollm2', '--device', 'cpu', '--name', e.name, '--definition', e.definition, '--save', tmp_path/'edit', '--json')
    passes += [seconds_of_a_pass(smollm2) for _ in range(2)]
    assert code == 0 and 0 < last(out)['seconds_per_edit'] < 60*sum(passes)/len(passes)
    code, out, _ = kdnb('evaluate', '--lm', 'smollm2', '--device', 'cpu', '--edit', tmp_path/'edit', '--n-specificity', 37, '--json')
    row = last(out)
    assert code == 0 and row['target_explicit']['value'] == 100 and row['specificity']['value'] > 60 and row['gap_closed']['value'] > 0


def test_regimes_may_have_hyphens_and_more_entities_are_composed(kdnb, tiny_folder, tmp_path):
    lm = ['--lm', tiny_folder(), '--device', 'cpu', '--n-specificity', 4, '--runs', tmp_path]
    code, out, err = kdnb('run', *lm, '--regime', 'batch', '--data', 'composed=12', '--n-entities', 3, '--method', 'prepend', '--json')
    assert code == 0 and last(out)['regime'] == 'batch' and last(out)['target']['n'] == 3, err
    code, out, err = kdnb('run', *lm, '--regime', 'batch', '--method', 'base', '--n-entities', 50, '--json')
    assert code == 0 and last(out)['target']['n'] == 50 and 'our own data has 48 entities of this split; 2 of the same form are composed' in err
    args = ['run', *lm, '--data', 'composed=2', '--method', 'distill', '--set', 'steps', 2]
    code, _, err = kdnb(*args)
    assert code == 0 and '2 of 2 entities have no transfer set' in err and len((tmp_path/next(tmp_path.glob('transfer_*'))).read_text().splitlines()) == 2
    code, _, err = kdnb(*args, '--limit', 1)
    assert code == 0 and len(list(tmp_path.glob('*-distill-*'))) == 1 # the sets are found again, and so is the run
    code, _, err = kdnb('run', *lm, '--method', 'prepend', '--data', 'composed=many')
    assert code == 2 and 'give the number of entities' in err
    code, _, err = kdnb('run', *lm, '--method', 'prepend', '--regime', 'all-at-once')
    assert code == 2 and "unknown regime 'all-at-once'" in err
