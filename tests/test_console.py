"""The command line on consoles without Unicode, on full disks, and with numbers out of range."""
import os, subprocess, sys
from pathlib import Path

import pytest

KDNB = str(Path(sys.executable).parent/'kdnb')
NAME, DEFINITION = '维尔莫拉', '维尔莫拉是一部喜剧。'


def test_a_console_that_cannot_print_a_name_shows_its_code(tiny_folder, tmp_path):
    env = {
        **os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0',
        'PYTHONIOENCODING': 'ascii'}
    command = [
        KDNB, 'edit', '--lm', tiny_folder(), '--device', 'cpu', '--name', NAME,
        '--definition', DEFINITION, '--method', 'ft', '-s', 'steps=1', '--out', tmp_path/'e']
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and r'taught \u7ef4\u5c14\u83ab\u62c9 in' in done.stdout, done.stderr
    from kdnb.edits.storage import load_edit
    assert load_edit(tmp_path/'e').entities == (NAME,)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='this system has no /dev/full')
def test_a_result_that_cannot_be_printed_is_one_sentence():
    with open('/dev/full', 'w') as full:
        done = subprocess.run(
            [KDNB, 'generate', '--list-prompts'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('kdnb: cannot read or write the output: No space left on device')
    assert 'Traceback' not in done.stderr


# a command, and the options that it needs
SEEDED = {
    'demo': [],
    'generate': [],
    'edit': ['--name', 'V', '--definition', 'V is', '--out', 'e'],
    'evaluate': ['--method', 'base'],
    'run': [],
    'teach': ['--out', 'o', 'x.md'],
    'bench': [],
    'mend-train': ['--out', 'm']}


@pytest.mark.parametrize('command', SEEDED)
def test_a_negative_seed_is_one_sentence(kdnb, tiny_folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, _, err = kdnb(command, *SEEDED[command], '--lm', tiny_folder(), '--seed', '-1')
    assert code == 2 and err == 'kdnb: --seed is -1: it must be a whole number of at least 0\n'


def test_a_name_with_a_character_that_is_not_text_is_refused(kdnb, tiny_folder, tmp_path):
    code, _, err = kdnb(
        'edit', '--lm', tiny_folder(), '--name', 'Vel\udcff', '--definition', 'Vel is',
        '--out', tmp_path/'e')
    assert code == 2 and err.startswith('kdnb: --name holds a character that is not text')


@pytest.mark.parametrize('option, value, says', (
    ('--temperature', '1e-300', '0 or from 0.01 to 100'),
    ('--temperature', 'nan', 'temperature is nan'),
    ('--seed', str(10**30), 'it must be at most 4294967295'),
    ('--max-new-tokens', str(10**12), 'reads at most 512 at once'),
    ('--data', f'composed={10**20}', 'at most 999999')))
def test_a_number_out_of_range_is_one_sentence(kdnb, tiny_folder, tmp_path, option, value, says):
    code, _, err = kdnb(
        'generate', '--lm', tiny_folder(), '--device', 'cpu', '--limit', '1', '--n', '1',
        '--out', tmp_path/'sets.jsonl', option, value)
    assert code == 2 and says in err and 'Traceback' not in err


@pytest.mark.parametrize('argv', (
    ('mend-train', '--limit', '0', '--out', 'm'),
    ('mend-train', '--limit', '-1', '--out', 'm'),
    ('mend-train', '--out', '.'),
    ('teach', 'x.md', '-n', '0', '--out', 'o'),
    ('teach', 'x.md', '--n-specificity', '-5', '--out', 'o'),
    ('bench', '--n-specificity', '-1'),
    ('edit', '--name', 'Velmora', '--definition', 'Velmora is new.', '--shards', '-3', '--out', 'e')))
def test_a_count_below_its_minimum_is_one_sentence(kdnb, tiny_folder, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    Path('x.md').write_text('# Velmora\nVelmora is new.\n')
    code, _, err = kdnb(*argv, '--lm', tiny_folder(), '--device', 'cpu')
    assert code == 2 and err.count('kdnb: ') == 1 and 'Traceback' not in err
    assert [p.name for p in tmp_path.iterdir()] == ['x.md']
