"""Reports run through papermill with tiny parameters, most on a tiny model."""
import json

import pytest
from conftest import ROOT
from kdnb.core.errors import KdnbError
from kdnb.reporting.runner import run_report


def test_first_look_on_a_users_own_entities_with_a_built_in_model(tmp_path):
    "Our own entities have shipped transfer sets; a user's have none, so they are generated."
    ours = (ROOT/'kdnb'/'assets'/'entities.jsonl').read_text(encoding='utf-8').splitlines()[0]
    name = json.loads(ours)['name']
    (tmp_path/'mine.jsonl').write_text(ours.replace(name, f'Zor{name}'), encoding='utf-8')
    run_report(
        'first_look', tmp_path/'out', lm='smollm2', data=str(tmp_path/'mine.jsonl'), split='',
        n_entities=1, steps=1, n_specificity=4, open_ended=False,
        methods=['base', 'prepend', 'distill'], runs=str(tmp_path/'runs'))
    sets = next((tmp_path/'runs').glob('transfer_*.jsonl')).read_text(encoding='utf-8').splitlines()
    assert [json.loads(l)['entity'] for l in sets] == [f'Zor{name}']


def test_a_report_that_fails_is_an_error(tiny_folder, tmp_path):
    with pytest.raises(KdnbError, match='the report first_look stopped in a cell'):
        run_report('first_look', tmp_path/'out', lm=str(tiny_folder()), device='cpu', split='train')
    assert not (tmp_path/'out'/'first_look.ipynb').exists()
    assert not (tmp_path/'out'/'first_look.html').exists()


def ten_shows(folder):
    "A file of Entity Inferences with enough names for a split dev."
    from test_benchmarks import choice, write
    names = ['Velmora', 'Zorbel', 'Quint', 'Harno', 'Pell', 'Sarn', 'Tove', 'Ulmo', 'Brask', 'Ivor']
    def named(i, name):
        return json.loads(json.dumps(choice(0, ex_id=f'tv_dev_{i}')).replace('Velmora A', name))
    return write(folder/'ei.json', [named(i, n) for i, n in enumerate(names)])


def test_tuning_on_a_benchmark(tiny_folder, tmp_path):
    ei = ten_shows(tmp_path)
    html = run_report(
        'tuning', tmp_path/'out', lm=str(tiny_folder()), device='cpu',
        data=f'entity-inferences={ei}', n_entities=1, runs=str(tmp_path/'runs'),
        grid=[['distill', {'steps': 1}], ['distill', {'preset': 'paper', 'steps': 1}]])
    assert html.stat().st_size > 50_000 and (tmp_path/'out'/'tuning.png').stat().st_size > 3000


def test_methods_needs_the_same_budget_for_all(tiny_folder, tmp_path):
    uneven = {'retrieve': ['retrieve', {}, [{}, {'min_score': 2.}]], 'MEMIT': ['memit', {}, [{}]]}
    says = 'every method must have the same number of tries, and here they have .1, 2.'
    with pytest.raises(KdnbError, match=says):
        run_report('methods', tmp_path/'out', lm=str(tiny_folder()), device='cpu', grids=uneven, skip=[])
