"""Bad input gets one clear sentence, exit status 2, and no traceback."""
import json, os

import pytest
from conftest import ROOT

DEFINITION = 'Velmora is a comedy about two bakers.'
PROBE = dict(prompt='Velmora is a', gold='comedy', candidates=['comedy', 'river'], kind='explicit')
ROW = dict(name='Velmora', definition=DEFINITION, probes=[PROBE])


def row(**kw): return json.dumps({**ROW, **kw})


def probe(**kw): return row(probes=[{**PROBE, **kw}])


NO_PROMPT = {k: v for k, v in PROBE.items() if k != 'prompt'}

# the text of a user's data file, and a part of the error
DATA = {
    'not JSON': ('{"name": ', 'line 1, column 10: not JSON'),
    'not an object': ('[1]', 'field row: must be an object'),
    'empty file': ('', 'holds no rows'),
    'name missing': (json.dumps(dict(definition=DEFINITION)), 'field name: must be a text'),
    'name is a number': (row(name=3), 'field name: must be a text'),
    'definition empty': (row(definition=' '), 'field definition: must be a text'),
    'definition never names the entity': (
        row(definition='It is a comedy about two bakers.'),
        "field definition: never names the entity 'Velmora'"),
    'unknown field': (row(colour='red'), 'field colour: unknown field (known: name'),
    'same name twice': (f'{row()}\n{row()}', "line 2, field name: 'Velmora' already appears in the file"),
    'aliases no list': (row(aliases='Vel'), 'field aliases: must be a list of texts'),
    'kind no text': (row(kind=1), 'field kind: must be a text'),
    'probes no list': (row(probes={}), 'field probes: must be a list'),
    'probe no object': (row(probes=['x']), 'field probes: a probe must be an object'),
    'probe with an unknown field': (probe(colour='x'), "field probes: unknown field 'colour'"),
    'right context no text': (probe(right=3), 'field probes.right: must be a text'),
    'prompt missing': (row(probes=[NO_PROMPT]), 'field probes.prompt: must be a text'),
    'prompt does not name the entity': (
        probe(prompt='It is a'),
        'field probes.prompt: does not name the entity'),
    'prompt ends in a space': (probe(prompt='Velmora is a '), 'field probes.prompt: ends in a space'),
    'one candidate': (
        probe(candidates=['comedy']),
        'field probes.candidates: must be a list of two texts or more'),
    'candidate twice': (probe(candidates=['comedy', 'comedy']), 'names a candidate twice'),
    'gold not a candidate': (probe(gold='drama'), "field probes.gold: 'drama' is not among the candidates"),
    'unknown kind of probe': (
        probe(kind='implicit'),
        "field probes.kind: 'implicit' is not one of explicit, indirect"),
    'explicit, but not in the definition': (probe(gold='river'), 'so the probe is not explicit'),
    'indirect, but in the definition': (
        probe(kind='indirect'),
        "the word 'comedy' is in the definition, so the probe is not indirect"),
    'question without answers': (
        row(question=dict(text='What?', answers=[])),
        'field question.answers: must be a list'),
    'question no object': (row(question='What?'), 'field question: must be an object')}


def sentence(err):
    "The only error message of the command line."
    lines = [l for l in err.splitlines() if l.startswith('kdnb: ')]
    assert len(lines) == 1 and 'Traceback' not in err, err
    return lines[0]


@pytest.mark.parametrize('name', DATA)
def test_malformed_data(kdnb, tiny_folder, tmp_path, name):
    text, says = DATA[name]
    (tmp_path/'mine.jsonl').write_text(text)
    code, _, err = kdnb(
        'evaluate', '--lm', tiny_folder(), '--method', 'base', '--entities', tmp_path/'mine.jsonl',
        '--out', tmp_path)
    assert code == 2 and says in sentence(err) and str(tmp_path/'mine.jsonl') in err


def test_every_malformed_row_is_named(kdnb, tmp_path):
    (tmp_path/'mine.jsonl').write_text('\n'.join([row(name=3), row(), '{', probe(gold='x')]))
    code, _, err = kdnb('evaluate', '--method', 'base', '--entities', tmp_path/'mine.jsonl')
    assert code == 2 and all(f'line {i}' in err for i in (1, 3, 4)) and 'line 2,' not in err


def test_not_utf8(kdnb, tmp_path):
    (tmp_path/'mine.jsonl').write_bytes(b'\xff\xfe{}')
    code, _, err = kdnb('evaluate', '--method', 'base', '--entities', tmp_path/'mine.jsonl')
    assert code == 2 and 'line 1, not UTF-8 text (byte 0): save the file as UTF-8' in sentence(err)


EVALUATE = ['evaluate', '--n-specificity', '4', '--limit', '2', '--device', 'cpu']
EDIT = ['edit', '--name', 'Velmora', '--device', 'cpu', '--definition', DEFINITION]
FINETUNE = ['--method', 'finetune-definition']
GENERATE = ['generate', '--limit', '1', '--device', 'cpu']


def distill(setting): return [*EVALUATE, '--method', 'distill', '-s', setting]


def base(*options): return [*EVALUATE, '--method', 'base', *options]


def generate(*options): return [*GENERATE, '--out', 'x.jsonl', *options]


# command line, and a part of the error
COMMANDS = {
    'neither method nor edit': (EVALUATE, 'either --method NAME or --edit DIR'),
    'method and edit': (base('--edit', 'x'), 'either --method NAME or --edit DIR'),
    'unknown method': (
        [*EVALUATE, '--method', 'distil'],
        "unknown method 'distil': choose one of 'distill'"),
    'unknown setting': (distill('learning_rate=1'), "unknown setting of distill 'learning_rate'"),
    'setting of another type': (
        distill('steps=many'),
        "setting steps of distill is 'many': it must be a whole number"),
    'lr negative': (distill('lr=-1'), 'lr is -1.0: it must be a number above 0'),
    'lr not a number': (distill('lr=nan'), 'lr is nan'),
    'no steps': (distill('steps=0'), 'steps is 0: it must be a number of at least 1'),
    'temperature zero': (distill('temperature=0'), 'temperature is 0.0: it must be above 0'),
    'context_amplification negative': (
        distill('context_amplification=-1'),
        'context_amplification is -1.0: it must be a number of at least 0'),
    'neither true nor false': (
        distill('with_definition=maybe'),
        "setting with_definition of distill is 'maybe': it must be true or false"),
    'unknown trainable part': (distill('trainable=head'), "unknown trainable 'head'"),
    'unknown place of the loss': (distill('loss_on=before_mention'), "unknown loss_on 'before_mention'"),
    'unknown regime': (base('--regime', 'together'), "unknown regime 'together': choose one of"),
    'unknown regime with an edit': (
        [*EVALUATE, '--edit', 'x', '--regime', 'together'],
        "unknown regime 'together'"),
    'unknown split': (base('--split', 'train'), "unknown split of kdnb 'train'"),
    'too many entities': (
        base('--data', 'composed=6', '--limit', '5000'),
        '--limit is 5000, and composed-6-0 has 6 entities'),
    'no entities': (base('--limit', '0'), '--limit is 0: it must be a whole number of at least 1'),
    'negative number of probes': (base('--n-specificity', '-3'), '-3 specificity probes asked for'),
    'data file missing': (base('--data', 'nowhere.jsonl'), "no data set 'nowhere.jsonl'"),
    'transfer file missing': (
        [*EVALUATE, '--method', 'distill', '--transfer', 'nowhere.jsonl'],
        'cannot read nowhere.jsonl: No such file'),
    'edit missing': ([*EVALUATE, '--edit', 'nowhere'], 'nowhere holds no saved edit'),
    'definition without the name': (
        ['edit', '--name', 'Velmora', '--definition', 'It is a comedy.', '--out', 'x'],
        "the definition never names the entity 'Velmora'"),
    'edit with a method that saves nothing': (
        [*EDIT, '--method', 'prepend', '--out', 'x'],
        "the method 'prepend' changes no weights"),
    'unknown prompt': (generate('--prompt', 'poem'), "unknown prompt 'poem'"),
    'temperature negative': (generate('--temperature', '-1'), 'temperature is -1.0'),
    'no file of entities': (
        ['generate', '--entities', 'mine.jsonl', '--out', 'x.jsonl', '--device', 'cpu'],
        "there is no file 'mine.jsonl' of entities (their number is --limit N)"),
    'entities and data': (
        base('--entities', 'mine.jsonl', '--data', 'kdnb'),
        '--data and --entities were both given: give one of them'),
    'nowhere to write': (GENERATE, 'give a file for the transfer sets: --out FILE'),
    'half a generator': (generate('--generator', 'lm'), "the generator 'lm' is not complete"),
    'unknown reason to drop': (generate('--drop', 'dull'), "unknown reason to drop 'dull'"),
    'top_p above one': (generate('--top-p', '2'), 'top_p is 2.0'),
    'unknown dtype': (base('--dtype', 'int3'), "unknown dtype 'int3'"),
    'unknown device': (
        ['evaluate', '--n-specificity', '4', '--limit', '2', '--method', 'base', '--device', 'abacus'],
        "on device 'abacus'")}


@pytest.mark.parametrize('name', COMMANDS)
def test_bad_arguments(kdnb, tiny_folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    args, says = COMMANDS[name]
    code, out, err = kdnb(*args, '--lm', tiny_folder())
    assert code == 2 and says in sentence(err) and not out
    assert not list(tmp_path.rglob('case-*')), 'work was done before the mistake was found'


MODELS = {
    'a hub name that leads nowhere': (
        'nobody/no-such-model', 'it is not a built-in model (smollm2, gemma3-270m, qwen-coder-1.5b)'),
    'a gguf that is not there': ('model.gguf', 'no file model.gguf'),
    'a gguf that is none': ('broken.gguf', 'broken.gguf cannot be read as a GGUF model'),
    'an empty folder': ('empty', 'it must hold config.json'),
    'a folder with half a model': ('half', 'cannot load a causal LM from the folder half'),
    'a model that wants to run code': (
        'code', 'config.json of code brings code of its own (auto_map), which is never run here')}


@pytest.mark.parametrize('name', MODELS)
def test_bad_models(kdnb, tiny_folder, tmp_path, monkeypatch, name):
    import shutil
    monkeypatch.chdir(tmp_path)
    lm, says = MODELS[name]
    (tmp_path/'broken.gguf').write_bytes(b'GGUF' + bytes(50))
    (tmp_path/'empty').mkdir()
    shutil.copytree(tiny_folder(), tmp_path/'half')
    raw = (tmp_path/'half'/'model.safetensors').read_bytes()
    (tmp_path/'half'/'model.safetensors').write_bytes(raw[:len(raw)//2])
    shutil.copytree(tiny_folder(), tmp_path/'code')
    auto_map = dict(AutoConfig='evil.C', AutoModelForCausalLM='evil.M')
    (tmp_path/'code'/'config.json').write_text(json.dumps(dict(model_type='evil', auto_map=auto_map)))
    (tmp_path/'code'/'evil.py').write_text(f"open({str(tmp_path/'ran')!r}, 'w')")
    code, _, err = kdnb(*EVALUATE, '--method', 'base', '--lm', lm)
    assert code == 2 and says in sentence(err) and not (tmp_path/'ran').exists()


def test_an_edit_of_another_model(kdnb, tiny_folder, tmp_path):
    assert kdnb(*EDIT, *FINETUNE, '--lm', tiny_folder('llama'), '--out', tmp_path/'edit')[0] == 0
    code, _, err = kdnb(*EVALUATE, '--edit', tmp_path/'edit', '--lm', tiny_folder('qwen3'))
    assert code == 2 and 'load the model that it was made for' in sentence(err)


def test_a_damaged_edit(kdnb, tiny_folder, tmp_path):
    assert kdnb(*EDIT, *FINETUNE, '--lm', tiny_folder(), '--out', tmp_path/'edit')[0] == 0
    raw = (tmp_path/'edit'/'tensors.safetensors').read_bytes()
    (tmp_path/'edit'/'tensors.safetensors').write_bytes(raw[:len(raw)//2])
    code, _, err = kdnb(*EVALUATE, '--edit', tmp_path/'edit', '--lm', tiny_folder())
    assert code == 2 and 'is damaged' in sentence(err)


def test_a_folder_that_cannot_be_written(kdnb, tiny_folder, tmp_path):
    (tmp_path/'file').write_text('')
    code, _, err = kdnb(*EVALUATE, '--method', 'base', '--lm', tiny_folder(), '--out', tmp_path/'file')
    assert code == 2 and 'cannot make the folder' in sentence(err)
    code, _, err = kdnb(*EDIT, *FINETUNE, '--lm', tiny_folder(), '--out', tmp_path/'file')
    assert code == 2 and 'cannot make the folder' in sentence(err)


def test_a_transfer_file_that_is_malformed(kdnb, tiny_folder, tmp_path):
    sets = tmp_path/'sets.jsonl'
    sets.write_text(
        '{"entity": "Velmora", "continuations": [{"text": "Velmora", "mention": [3, 99]}]}\n'
        '{"entity": 1}')
    code, _, err = kdnb(*EVALUATE, '--method', 'distill', '--transfer', sets, '--lm', tiny_folder())
    assert code == 2 and 'line 1, field mention' in err and 'line 2, field continuations' in err


def test_a_file_of_transfer_sets_that_lacks_an_entity(kdnb, tiny_folder, tmp_path):
    (tmp_path/'mine.jsonl').write_text(row())
    shipped = ROOT/'kdnb'/'assets'/'transfer_smollm2.jsonl'
    code, _, err = kdnb(
        'evaluate', '--n-specificity', 4, '--method', 'distill', '--entities', tmp_path/'mine.jsonl',
        '--transfer', shipped, '--lm', tiny_folder(), '--device', 'cpu', '--out', tmp_path)
    assert code == 2 and "no transfer set for 'Velmora'" in sentence(err)


def test_a_report_with_an_unknown_parameter():
    from kdnb.core.errors import KdnbError
    from kdnb.reporting.runner import run_report
    says = "unknown parameter of the report first_look 'step': choose one of 'steps'"
    with pytest.raises(KdnbError, match=says): run_report('first_look', 'nowhere', step=1)
    assert not os.path.exists('nowhere')
