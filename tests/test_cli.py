"""Every command, as a user calls it."""
import json, re, shlex, subprocess, sys, time
from pathlib import Path

import pytest
from conftest import ROOT
from kdnb.apps.options import RENAMED, check_renamed
from kdnb.apps.parser import make_parser
from kdnb.core.errors import KdnbError
from kdnb.models.memory import has_fast_bfloat16
from kdnb.reporting.jobs import plan_reports

INTERVALS = 'target', 'target_explicit', 'target_indirect', 'target_open_ended', 'specificity'
KEYS = {
    *INTERVALS, 'gap_closed', 'unit', 'seconds_per_edit', 'peak_memory_gib', 'lm', 'method', 'regime',
    'seed', 'run'}
DEFINITION = 'Velmora Junction is a comedy about two rival bakers in a small town.'


def last(out): return json.loads(out.strip().splitlines()[-1])


def is_interval(v): return set(v) == {'value', 'low', 'high', 'n'} and v['low'] <= v['value'] <= v['high']


@pytest.mark.parametrize('command', (
    '', 'demo', 'generate', 'edit', 'evaluate', 'run', 'teach', 'ask', 'bench', 'mend-train', 'reports'))
def test_help(kdnb, command):
    code, out, _ = kdnb(*([command] if command else []), '--help')
    assert code == 0 and 'usage: kdnb' in out and all(len(l) < 140 for l in out.splitlines())


def parsers():
    "Dict from the names of commands to their parsers."
    choices = lambda parser: parser._subparsers._group_actions[0].choices
    commands = choices(make_parser())
    return {**commands, **{f'reports {name}': p for name, p in choices(commands['reports']).items()}}


def test_an_option_means_one_thing_in_every_command():
    "Same name, type, placeholder and help; only defaults, and the subjects of -s and --out, differ."
    described = {}
    for command, parser in parsers().items():
        for a in parser._actions:
            for name in a.option_strings:
                meaning = a.help.split(' (default: ')[0]
                if name in ('-s', '--set', '--out', '--method'): meaning = ''
                place = '' if name == '--out' else a.metavar
                described.setdefault(name, {})[meaning, place, a.type, type(a)] = command
    assert not {n: ways for n, ways in described.items() if len(ways) > 1}
    assert not set(RENAMED) & set(described)
    common = {'--limit', '--seed', '--json', '--device', '--dtype'}
    for command in ('demo', 'generate', 'mend-train', 'bench', 'evaluate', 'run'):
        assert common <= set(parsers()[command]._option_string_actions)
    for command in ('demo', 'generate', 'edit', 'mend-train', 'teach', 'evaluate', 'run', 'reports run'):
        assert '--out' in parsers()[command]._option_string_actions


# a command line, and the beginning of its error
FORMER = {
    'run --set lr 1e-4': '--set takes KEY=VALUE: give --set lr=1e-4',
    'run --set lr -1': '--set takes KEY=VALUE: give --set lr=-1',
    'teach x.md --out o -s trainable lora': '-s takes KEY=VALUE: give -s trainable=lora',
    'run -s lr': "-s 'lr' is not KEY=VALUE: give a key, = and a value, such as -s steps=10",
    'run -s =3': "-s '=3' is not KEY=VALUE: give a key, = and a value, such as -s steps=10",
    'run -s lr=1 --set lr=2': "--set gives lr twice, as '1' and as '2': give it once",
    'reports run all --set tiny': '--set NAME is now called --size: give --size tiny',
    'reports run all -p seed 1': '-p KEY VALUE is now -s KEY=VALUE: give -s seed=1',
    'reports run all --parameter seed 1': '--parameter KEY VALUE is now --set KEY=VALUE: give --set seed=1',
    'reports run all -p seed=1': '-p is now called -s',
    'reports run all -s seed=1 -s seed=2': "-s gives seed twice, as '1' and as '2': give it once",
    'run --entities 8': '--entities now takes a file: give the number of entities as --limit 8',
    'bench --entities=8': '--entities now takes a file: give the number of entities as --limit 8',
    'demo --n-entities 8': '--n-entities is now called --limit',
    'mend-train --composed 600 --out e': '--composed is now called --limit',
    'run --runs r': '--runs is now called --out',
    'evaluate --runs=r': '--runs is now called --out',
    'edit --save e': '--save is now called --out',
    'teach x.md --out o --apart': '--apart is now called --separate-adapters',
    'run --protocol paper': '--protocol is now called --preset',
    'run --measured-in bfloat16': '--measured-in is now called --eval-dtype',
    'run --at-once 4': '--at-once is now called --edits-per-batch',
    'generate --prompts paper': '--prompts is now called --prompt',
    'run --lim 3': "unknown option of kdnb run '--lim': choose one of '--lm', '--limit'",
    'reports run all --lables x': "unknown option of kdnb reports run '--lables': choose one of '--label'",
    'run everything': "'everything' is not an argument of kdnb run (all options: kdnb run --help)",
    'run --limit two': "argument --limit: 'two' is not a whole number (all options: kdnb run --help)",
    'edit --name Velmora':
        'the following arguments are required: --definition, --out (all options: kdnb edit --help)',
    "run --out ''": 'argument --out: it is empty (all options: kdnb run --help)',
    "run --lm ''": 'argument --lm: it is empty',
    "evaluate --edit ''": 'argument --edit: it is empty',
    "edit --name Velmora --definition 'Velmora is new.' --out e --alias ''": 'argument --alias: it is empty',
    "generate --limit 1 --out s --drop 'no mention'":
        "unknown reason to drop 'no mention': choose one of 'no_mention'",
    'generate --limit 0 --out s': '--limit is 0: it must be a whole number of at least 1',
    'mend-train --limit 1000000 --out e': '--limit is 1000000: it must be at most 999999',
    'bench --data composed=4': "unknown data set of bench 'composed': choose one of",
    "reports run tuning -s seed='[[[['":
        "parameter seed of the report tuning is '[[[[': it must be a whole number",
    'tech': "argument COMMAND: invalid choice: 'tech'",
    '': 'the following arguments are required: COMMAND (all options: kdnb --help)'}


@pytest.mark.parametrize('words', FORMER)
def test_a_former_or_wrong_spelling_is_one_sentence(kdnb, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = kdnb(*shlex.split(words))
    assert code == 2 and not out and err.startswith(f'kdnb: {FORMER[words]}') and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_every_former_option_is_refused(kdnb):
    for former, now in RENAMED.items():
        for command in ('run', 'demo', 'reports'):
            code, _, err = kdnb(command, former, 'x')
            assert (code, err) == (2, f'kdnb: {former} is now called {now}\n')


BAD_SETTINGS = {
    'lr=': "setting lr of finetune-definition is '': it must be a number or none",
    'lr=1=2': "setting lr of finetune-definition is '1=2'",
    'rank=[1]': "setting rank of finetune-definition is '[1]': it must be a whole number",
    'rank=none': "setting rank of finetune-definition is 'none'",
    'dropout=1': "setting dropout of finetune-definition is '1': it must be true or false",
    'learning_rate=1': "unknown setting of finetune-definition 'learning_rate'",
    'on=definition': "unknown setting of finetune-definition 'on'",
    'trainable=': "unknown trainable ''",
    'retain_file=nowhere.txt': 'nowhere.txt'}


def test_values_of_settings(kdnb, tiny_folder, tmp_path):
    "A value may contain =, be empty, or be none; a value that does not fit its field is one sentence."
    neutral = tmp_path/'a=b.txt'
    neutral.write_text('\n'.join(f'The weather of day {i} was as usual.' for i in range(40)))
    def edit(out, *settings):
        options = [w for s in ('steps=1', *settings) for w in ('-s', s)]
        return kdnb(
            'edit', '--lm', tiny_folder(), '--device', 'cpu', '--name', 'Velmora', '--method', 'ft',
            '--definition', 'Velmora is a comedy about two bakers.', *options, '--out', tmp_path/out)
    good = [
        (f'retain_file={neutral}',),
        ('retain_file=',),
        ('lr=null',),
        ('lr=none',),
        ('scale_lr_to_weights=FALSE', 'lr=1E-4')]
    for i, settings in enumerate(good):
        code, _, err = edit(f'edit{i}', *settings)
        assert code == 0, err
    for setting, says in BAD_SETTINGS.items():
        code, _, err = edit('wrong', setting)
        assert code == 2 and says in err and err.count('kdnb: ') == 1, err
        assert 'Traceback' not in err and not (tmp_path/'wrong').exists(), err


BAD_PARAMETERS = [
    ('seed', '', "parameter seed of the report first_look is '': it must be a whole number"),
    ('methods', 'base', 'it must be a list'),
    ('sed', '1', "unknown parameter of the report first_look 'sed'"),
    ('tuning.seed', '1', "unknown report among those that are run 'tuning'"),
    ('first_look.', '1', "unknown parameter of the report first_look ''")]


def test_values_of_parameters_of_reports():
    given = [
        ('runs', 'a=b'),
        ('methods', '["base", "prepend"]'),
        ('skip', '[]'),
        ('n_specificity', 'null'),
        ('lm', ''),
        ('first_look.seed', '3'),
        ('seed', '1')]
    job, = plan_reports(['first_look'], given, out='nowhere')
    want = dict(runs='a=b', methods=['base', 'prepend'], skip=[], n_specificity=None, lm='', seed=3)
    assert {k: job.parameters[k] for k in want} == want
    for name, value, says in BAD_PARAMETERS:
        with pytest.raises(KdnbError, match=re.escape(says)):
            plan_reports(['first_look'], [(name, value)], out='nowhere')


BAD_DATA = [
    (
        ['--data', 'mine.jsonl'],
        '--data takes the name of a data set, and mine.jsonl is a file: give it as --entities mine.jsonl'),
    (
        ['--data', 'kdnb', '--entities', 'mine.jsonl'],
        '--data and --entities were both given: give one of them'),
    (
        ['--data', 'nothing'],
        "no data set 'nothing': choose one of kdnb, composed=N, entity-inferences"),
    (
        ['--data', 'a=b.jsonl'],
        '--data takes the name of a data set, and a=b.jsonl is a file'),
    (
        ['--entities', 'nowhere.jsonl'],
        "there is no file 'nowhere.jsonl' of entities")]


def test_data_is_a_name_and_entities_are_a_file(kdnb, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = json.dumps(dict(name='Velmora', definition='Velmora is a comedy about two bakers.'))
    for name in ('mine.jsonl', 'ecbd', 'a=b.jsonl'): (tmp_path/name).write_text(row)
    lm = ['--lm', tiny_folder(), '--device', 'cpu']
    run, generate = ['run', *lm, '--method', 'base', '--n-specificity', 2], ['generate', *lm]
    for name in ('mine.jsonl', 'ecbd', 'a=b.jsonl'): # a file of any name is a file
        code, _, err = kdnb(*run, '--entities', name)
        assert code == 0, err
    for given, says in BAD_DATA:
        for command in (run, generate):
            code, _, err = kdnb(*command, '--out', 'x', *given)
            assert code == 2 and err.startswith(f'kdnb: {says}') and len(err.splitlines()) == 1, err


def test_the_limit_chooses_the_same_entities_in_every_command(kdnb, tiny_folder, tmp_path):
    "With any seed: the file that `generate` wrote has the sets that `run` needs."
    lm = ['--lm', tiny_folder(), '--device', 'cpu', '--limit', 2, '--seed', 3]
    code, _, err = kdnb(
        'generate', *lm, '-n', 2, '--drop', 'none', '--max-new-tokens', 8, '--out', tmp_path/'sets.jsonl')
    assert code == 0, err
    written = {json.loads(l)['entity'] for l in (tmp_path/'sets.jsonl').read_text().splitlines()}
    code, out, err = kdnb(
        'run', *lm, '--method', 'prepend', '--n-specificity', 2, '--out', tmp_path/'runs', '--json')
    assert code == 0, err
    cases = [json.loads(p.read_text()) for p in Path(last(out)['run']).glob('case-*.json')]
    assert {c['entities'][0] for c in cases} == written and len(written) == 2


def commands_in(text):
    "Command lines of fenced blocks and of `code`."
    for block in re.findall(r'```(?:sh|bash|console)?\n(.*?)```|`(kdnb [^`\n]+)`', text, re.S):
        for line in (block[0] or block[1]).replace('\\\n', ' ').splitlines():
            if line.startswith('kdnb '): yield line.split(' #')[0]


PAGES = [ROOT/'README.md', *(p for ext in ('md', 'txt') for p in (ROOT/'docs'/'pages').rglob(f'*.{ext}'))]


@pytest.mark.parametrize(
    'page', sorted(p.relative_to(ROOT).as_posix() for p in PAGES if p.name != 'lab_notes.md'))
def test_command_lines_of_the_documentation(page):
    "Every option of every command line exists, by its present name."
    for line in commands_in((ROOT/page).read_text()):
        words = shlex.split(line)[1:]
        name = ' '.join(words[:2]) if words[:2] == ['reports', 'run'] else words[0]
        check_renamed(words)
        if name not in parsers(): continue
        for word in words:
            if word.startswith('-') and word != '…':
                assert word.split('=')[0] in parsers()[name]._option_string_actions, line


def test_help_is_quick():
    done = subprocess.run(
        [Path(sys.executable).parent/'kdnb', '--help'], capture_output=True, text=True, timeout=10)
    assert done.returncode == 0 and 'evaluate' in done.stdout


DEMO = {
    'quick': ['base', 'prepend', 'finetune-definition', 'distill'],
    'full': ['base', 'prepend', 'random', 'finetune-definition', 'finetune-transfer', 'distill']}


@pytest.mark.parametrize('size', DEMO)
def test_demo(kdnb, tiny_folder, tmp_path, size):
    "The first command of the README, here with a model that has no shipped transfer sets."
    args = ['demo', '--lm', tiny_folder(), '--device', 'cpu', '--limit', 2, '--out', tmp_path, '--json']
    code, out, err = kdnb(*args, *(['--full'] if size == 'full' else []))
    assert code == 0 and last(out)['method'] == 'distill', err
    places = [err.index(s) for s in ('On this machine the demo takes about ', ' M parameters', 'left: ')]
    assert places == sorted(places)
    demo = json.loads((tmp_path/'demo.json').read_text())
    assert demo['minutes'] >= demo['to_first_picture'] >= 0 and demo['cpu_minutes'] > 0
    assert 'cores' in demo['machine'] and demo['entities'] == 2
    assert [m['method'] for m in demo['methods']] == DEMO[size]
    assert all((tmp_path/p).stat().st_size > 3000 for p in ('first.png', 'results.png', 'demo.html'))
    # the sentences are those of the page and of the terminal, and the last says n
    assert 'n = 2 entities' in demo['findings'][-1] and all(s in out for s in demo['findings'])
    assert f"{demo['n_specificity']} specificity probes" in (tmp_path/'demo.html').read_text()
    assert (str(tmp_path/'first_look.html') in err) == (size == 'full')


def test_an_interrupted_demo_goes_on(kdnb, tiny_folder, tmp_path):
    "What is finished is not computed again, and what is missing is."
    args = ['demo', '--lm', tiny_folder(), '--device', 'cpu', '--limit', 2, '--out', tmp_path, '--json']
    code, out, err = kdnb(*args)
    assert code == 0, err
    cases = {p: p.read_bytes() for p in tmp_path.glob('runs/*/case-*.json')}
    assert len(cases) == 8
    lost = next(p for p in cases if '-finetune-definition-' in p.parent.name)
    lost.unlink()
    (lost.parent/'summary.json').unlink()
    (tmp_path/'demo.html').unlink()
    again, out_again, err = kdnb(*args)
    assert again == 0, err
    assert lost.exists() and 'some cases finished before' in (tmp_path/'demo.html').read_text()
    assert all(p.read_bytes() == b for p, b in cases.items() if p != lost)
    assert last(out_again)['target'] == last(out)['target']


def test_a_demo_replaces_no_page_of_the_users(kdnb, tiny_folder, tmp_path):
    (tmp_path/'demo.html').write_text('mine')
    code, _, err = kdnb('demo', '--lm', tiny_folder(), '--device', 'cpu', '--limit', 2, '--out', tmp_path)
    assert code == 2 and 'demo.html was not made by kdnb' in err
    assert (tmp_path/'demo.html').read_text() == 'mine'


@pytest.mark.parametrize('method', ('base', 'prepend', 'random', 'finetune-definition'))
def test_evaluate_a_method(kdnb, tiny_folder, tmp_path, method):
    args = [
        'evaluate', '--lm', tiny_folder(), '--device', 'cpu', '--method', method, '--limit', 3,
        '--n-specificity', 6, '--out', tmp_path, '--json']
    if 'finetune' in method: args += ['-s', 'steps=2']
    code, out, err = kdnb(*args)
    row = last(out)
    assert code == 0 and KEYS <= set(row) and all(is_interval(row[k]) for k in INTERVALS)
    assert row['method'] == method and Path(row['run']).is_dir() and 'GiB of memory' in err
    # run again, the command finds its results
    assert kdnb(*args)[1].splitlines()[-1] == out.splitlines()[-1]


@pytest.mark.parametrize('regime', ('batch', 'sequential'))
def test_evaluate_regimes(kdnb, tiny_folder, tmp_path, regime):
    code, out, _ = kdnb(
        'evaluate', '--lm', tiny_folder(), '--device', 'cpu', '--method', 'distill',
        '--regime', regime, '--limit', 2, '--n-specificity', 4, '-s', 'steps=2',
        '--out', tmp_path, '--json')
    assert code == 0 and last(out)['regime'] == regime


@pytest.mark.parametrize('method', ('rome', 'memit'))
def test_edit_by_a_locating_method(kdnb, tiny_folder, tmp_path, monkeypatch, method):
    monkeypatch.setenv('KDNB_CACHE', str(tmp_path/'cache'))
    edit = [
        'edit', '--lm', tiny_folder('llama', 4), '--device', 'cpu', '--method', method,
        '--name', 'Velmora']
    layer = 'layer=1' if method == 'rome' else 'last=1'
    text = f"text={ROOT/'kdnb'/'assets'/'neutral.txt'}"
    code, out, err = kdnb(
        *edit, '--definition', 'Velmora is a comedy about two bakers.', '-s', 'steps=3',
        '-s', layer, '-s', text, '--out', tmp_path/'edit', '--json')
    assert code == 0 and last(out)['method'] == method and (tmp_path/'edit'/'edit.json').exists(), err
    code, _, err = kdnb(*edit, '--definition', 'This is Velmora.', '--out', tmp_path/'edit2')
    assert code == 2 and 'says nothing after its name' in err


def test_generate_edit_evaluate(kdnb, tiny_folder, tmp_path):
    lm = ['--lm', tiny_folder(), '--device', 'cpu']
    code, out, _ = kdnb('generate', *lm, '--limit', 2, '-n', 4, '--out', tmp_path/'sets.jsonl', '--json')
    assert code == 0 and last(out)['entities'] == 2 and KEYS <= set(last(out))
    text = (tmp_path/'sets.jsonl').read_text()
    assert kdnb('generate', *lm, '--limit', 2, '-n', 4, '--out', tmp_path/'sets.jsonl')[0] == 0
    assert (tmp_path/'sets.jsonl').read_text() == text
    code, out, _ = kdnb(
        'edit', *lm, '--name', 'Velmora Junction', '--alias', 'Velmora', '--definition', DEFINITION,
        '--method', 'ft', '--out', tmp_path/'edit', '--json')
    assert code == 0 and KEYS <= set(last(out)) and last(out)['target'] is None
    code, out, err = kdnb('evaluate', *lm, '--edit', tmp_path/'edit', '--n-specificity', 6, '--json')
    row = last(out)
    assert code == 0 and row['target'] is None and is_interval(row['specificity']) and 'no probes' in err
    probe = dict(
        prompt='Velmora Junction is a', gold='comedy', candidates=['comedy', 'river'], kind='explicit')
    mine = dict(name='Velmora Junction', definition=DEFINITION, probes=[probe])
    (tmp_path/'mine.jsonl').write_text(json.dumps(mine))
    code, out, _ = kdnb(
        'evaluate', *lm, '--edit', tmp_path/'edit', '--entities', tmp_path/'mine.jsonl',
        '--n-specificity', 6, '--json')
    assert code == 0 and is_interval(last(out)['target'])


def seconds_of_a_pass(lm):
    "Seconds of a training pass over 256 tokens, which grow with the load of the machine."
    import torch
    ids, model, start = torch.arange(256).view(8, 32), lm.model.requires_grad_(True), time.perf_counter()
    with torch.autocast('cpu', torch.bfloat16, enabled=has_fast_bfloat16(lm.device)):
        model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return time.perf_counter() - start


def test_smollm2_learns_from_the_command_line(kdnb, smollm2, ds, tmp_path):
    "An edit costs at most 60 passes over 256 tokens (about 30 were measured); seconds depend on the load."
    e = ds.split('test').entities[0]
    passes = [seconds_of_a_pass(smollm2) for _ in range(3)][1:]
    code, out, _ = kdnb(
        'edit', '--lm', 'smollm2', '--device', 'cpu', '--name', e.name,
        '--definition', e.definition, '--out', tmp_path/'edit', '--json')
    passes += [seconds_of_a_pass(smollm2) for _ in range(2)]
    assert code == 0 and 0 < last(out)['seconds_per_edit'] < 60*sum(passes)/len(passes)
    code, out, _ = kdnb(
        'evaluate', '--lm', 'smollm2', '--device', 'cpu', '--edit', tmp_path/'edit',
        '--n-specificity', 37, '--json')
    row = last(out)
    assert code == 0 and row['target_explicit']['value'] == 100
    assert row['specificity']['value'] > 60 and row['gap_closed']['value'] > 0


def test_entities_beyond_our_own_are_composed(kdnb, tiny_folder, tmp_path):
    lm = ['--lm', tiny_folder(), '--device', 'cpu', '--n-specificity', 4, '--out', tmp_path]
    code, out, err = kdnb(
        'run', *lm, '--regime', 'batch', '--data', 'composed=12', '--limit', 3,
        '--method', 'prepend', '--json')
    assert code == 0 and last(out)['regime'] == 'batch' and last(out)['target']['n'] == 3, err
    code, out, err = kdnb('run', *lm, '--regime', 'batch', '--method', 'base', '--limit', 50, '--json')
    assert code == 0 and last(out)['target']['n'] == 50
    assert 'our own data has 48 entities of this split; 2 of the same form are composed' in err
    args = ['run', *lm, '--data', 'composed=2', '--method', 'distill', '-s', 'steps=2']
    code, _, err = kdnb(*args)
    assert code == 0 and '2 of 2 entities have no transfer set' in err
    assert len((tmp_path/next(tmp_path.glob('transfer_*'))).read_text().splitlines()) == 2
    code, _, err = kdnb(*args, '--limit', 1)
    # the transfer sets and the run are found again
    assert code == 0 and len(list(tmp_path.glob('*-distill-*'))) == 1
    code, _, err = kdnb('run', *lm, '--method', 'prepend', '--data', 'composed=many')
    assert code == 2 and 'give the number of entities' in err
    code, _, err = kdnb('run', *lm, '--method', 'prepend', '--regime', 'all-at-once')
    assert code == 2 and "unknown regime 'all-at-once'" in err
