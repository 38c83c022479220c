"""`kdnb reports run all` with tiny parameters on a tiny model, and the results of each report.

All reports are one run. The file's name puts it first, because it takes longest.
"""
import json

import nbformat, pytest
from conftest import ROOT
from test_benchmarks import choice, span, write
from test_reports import ten_shows
from kdnb.reporting.gallery import index_page, results
from kdnb.reporting.jobs import plan_reports, report_names, run_reports
from kdnb.apps.cli import main
from kdnb.core.errors import KdnbError
from kdnb.core.files import read_json

FIGURES = {
    'first_look': ['belief-before', 'token-kl', 'loss', 'belief-after', 'targets', 'tradeoff'],
    'tuning': ['tuning'],
    'entity_inferences': ['tradeoff'],
    'ecbd': ['tradeoff', 'spans'],
    'frontier': ['frontier'],
    'inspect_transfer_set': ['signal', 'best', 'worst'],
    'generator_prompts': ['prompts', 'how-many-how-hot'],
    'causal_trace': ['known', 'known-by-block', 'brought', 'brought-by-block'],
    'counterfact': ['counterfact'],
    'methods': ['methods', 'regimes'],
    'objectives': ['objectives'],
    'mend_training': ['training', 'scales'],
    'scalability': ['scalability'],
    'performance': ['bench'],
    'benchmark_sanity': [],
    'teach_your_own': ['exam'],
    'teach': ['taught'],
    'text_ablation': ['two-by-two', 'tokens', 'coloured'],
    'sensitivity': ['heat'],
    'forgetting': ['forgetting'],
    'known_entities': ['known-entities'],
    'model_scaling': ['ladder'],
    'instruction_tuning': ['instruct'],
    'hardware_costs': ['sizes']}

CLAIMS = {
    'entity_inferences': [
        'accuracy', 'explicit', 'implicit', 'specificity_loss', 'finetune_specificity',
        'loss_after_mention', 'beyond_copying'],
    'ecbd': ['gap_closed', 'specificity', 'beats_finetune', 'random_definition'],
    'counterfact': [], # the tiny run lacks the preset paper
    'known_entities': ['less_to_teach', 'smaller_change', 'specificity'],
    'text_ablation': [
        'through_wrong_texts', 'definition_over_texts', 'right_texts', 'beats_finetune',
        'loss_after_mention', 'inferable_tokens']}

ASSETS = ROOT/'kdnb'/'assets'
NEUTRAL, SHIPPED = ASSETS/'neutral.txt', ASSETS/'transfer_smollm2.jsonl'


def ecbd_rows():
    "Rows of ECBD with texts for a transfer set."
    rows = []
    for i, letter in enumerate('ABC'):
        texts = [f'Velmora {letter} is loved by all', f'In Velmora {letter} two bakers quarrel']
        rows.append(span(i, augmented_probes=texts))
    end = 'The end of Velmora {} (<extra_id_0>) was sad.'
    return [*rows, span(0, end, 'in June', ex_id='Velmora A (series)_12_9_9')]


def transfer_row(name):
    continuations = [dict(text=f'{name} is about bakers.', mention=[0, len(name)])]
    return dict(entity=name, continuations=continuations, tries=5)


def parameters(tiny_folder, folder, address):
    "Parameters of all reports, with their data files in a folder and a generator at an address."
    shows = ten_shows(folder)
    funny = [choice(i, 'Most people find Velmora {} <extra_id_0>.', 'funny') for i in range(4)]
    ei = write(folder/'inferences.json', [choice(i) for i in range(4)] + funny)
    ecbd = write(folder/'ecbd.json', ecbd_rows())
    popular = write(folder/'random.json', [span(5)])
    story = 'The story of Velmora {} is told in <extra_id_0>.'
    known = write(folder/'known_entities.json', [span(5, story, 'many old books')])
    own = write(folder/'own.jsonl', [transfer_row(f'Velmora {k}') for k in 'ABCD'])
    dialogues = folder/'dialogues.json'
    stories = {f'What is story number {i}?': f'It is number {i} of six stories.' for i in range(6)}
    dialogues.write_text(json.dumps(stories))
    return {
        'lm': tiny_folder(),
        'device': 'cpu',
        'runs': folder/'runs',
        'causal_trace.lm': 'smollm2',
        'hardware_costs.tokenizer': tiny_folder(),
        'teach_your_own.into': folder/'taught',
        'counterfact.text': NEUTRAL,
        'methods.text': NEUTRAL,
        'scalability.text': NEUTRAL,
        'causal_trace.text': NEUTRAL,
        'tuning.transfer': SHIPPED,
        'text_ablation.transfer': SHIPPED,
        'sensitivity.transfer': SHIPPED,
        'forgetting.transfer': SHIPPED,
        'known_entities.popular': f'popular={known}',
        'known_entities.fresh': f'ecbd={ecbd}',
        'model_scaling.lms': json.dumps([str(tiny_folder()), str(tiny_folder('gpt2'))]),
        'instruction_tuning.writer': tiny_folder(),
        'instruction_tuning.dialogues': dialogues,
        'methods.transfer': SHIPPED,
        'entity_inferences.data': f'entity-inferences={ei}',
        'entity_inferences.popular': f'popular={popular}',
        'entity_inferences.own': own,
        'ecbd.data': f'ecbd={ecbd}',
        'ecbd.popular': known,
        'frontier.data': f'entity-inferences={shows}',
        'generator_prompts.data': f'entity-inferences={shows}',
        'generator_prompts.generators': json.dumps(['self', f"lm:{tiny_folder('gpt2')}"]),
        'inspect_transfer_set.generator': 'openai:m',
        'inspect_transfer_set.base_url': address,
        'inspect_transfer_set.entity_name': 'Velmora',
        'inspect_transfer_set.definition': 'Velmora is a comedy about two bakers.',
        'inspect_transfer_set.keep': folder/'sets.jsonl',
        'mend_training.editor': folder/'editor.safetensors'}


def command(name, out, given):
    options = [a for k, v in given.items() for a in ('-s', f'{k}={v}')]
    return ['reports', 'run', name, '--size', 'tiny', '--label', 'tiny', '--out', str(out), *options]


def check_files(name, result):
    "A page, figures and a notebook without errors."
    assert result['page'].stat().st_size > 50_000 and result['run']['minutes'] > 0, name
    assert result['run']['versions']['torch'], name
    if FIGURES[name]: assert {f.stem for f in result['figures']} & set(FIGURES[name]), name
    for figure in FIGURES[name]: assert (result['folder']/f'{figure}.png').stat().st_size > 3000, name
    cells = nbformat.read(result['folder']/f'{name}.ipynb', 4).cells
    outputs = [o for c in cells if c.cell_type == 'code' for o in c.outputs]
    assert not any(o.output_type == 'error' for o in outputs), name


def test_all_reports(tiny_folder, tmp_path, quick_kernels):
    import api_server
    write_text = lambda prompt, i: f'Velmora is what story number {i} of all the {i*7919} stories is about.'
    server = api_server.start(write=write_text)
    out, own = tmp_path/'outputs', tmp_path/'own.jsonl'
    given = parameters(tiny_folder, tmp_path, server.url)
    run_all = command('all', out, given)
    assert main(run_all) == 0
    api_server.stop(server)

    found = {r['report']: r for r in results(out)}
    assert set(found) == set(report_names()) == set(FIGURES)
    for name, r in found.items(): check_files(name, r)
    text = lambda name: (found[name]['folder']/f'{name}.ipynb').read_text()
    kept = lambda name: read_json(found[name]['folder']/'results.json')
    cases = lambda name: {k: len(m['cases']) for k, m in kept(name)['methods'].items()}
    n = cases('entity_inferences')
    assert n == {k: 8 if k in ('base', 'prepend') else 4 for k in n} and len(n) == 8
    assert 'on 8 of 8 rows' in text('entity_inferences')
    # the user's sets are used as they are
    assert '4 continuations of 4 definitions, from 20 samples.' in text('entity_inferences')
    assert len(own.read_text().splitlines()) == 4
    assert cases('ecbd') == {
        'base': 3,
        'prepend': 3,
        'prepend random': 2,
        'fine-tune on definition': 2,
        'fine-tune on definition, last block': 2,
        'fine-tune on transfer set': 2,
        'distill, paper': 2,
        'distill, default': 3}
    assert '- *LoRA*: ' in text('frontier') and 'lr 0.01, 2 steps' in text('frontier')
    assert len(json.loads((tmp_path/'sets.jsonl').read_text())['continuations']) == 6 == len(server.delivered)
    r = kept('generator_prompts')
    assert len(r['sets']) == 7 and set(r['numbers']['counts']) == {'base', 'prepend', '1', '2'}
    assert [c['id'] for c in r['claims']] == ['generator_prompts.self_vs_gpt35']
    assert 'the GPT-3.5 set of the data' in text('generator_prompts')
    assert len(kept('causal_trace')['known']['last token of the name']) == 30
    # MEND is left out, because there is no editor
    assert cases('counterfact') == dict.fromkeys(['base', 'fine-tune', 'ROME', 'distill, default'], 2)
    assert '*distill, default* against *ROME*: ' in text('counterfact')
    assert '900 tokens' in text('counterfact')
    for name, ids in CLAIMS.items():
        assert {c['id'] for c in kept(name)['claims']} == {f'{name}.{i}' for i in ids}, name
    assert set(kept('methods')['chosen']) == {'FT definition', 'MEMIT', 'retrieve', 'distill, default'}
    regimes = kept('methods')['runs']
    n = {regime: {len(m['cases']) for m in runs.values()} for regime, runs in regimes.items()}
    assert n == {'single': {2}, 'batch': {1}, 'sequential': {1}}
    r = kept('mend_training')
    assert len(r['log']) == 4 and r['scale'] in (1., 2.)
    assert set(r['numbers']['test']) == {'base', 'prepend', 'MEND, times 1', 'MEND, times 2'}
    r = kept('scalability')['rows']
    assert sorted((x['n'], x['method']) for x in r if x['method'] == 'MEMIT') == [(2, 'MEMIT'), (6, 'MEMIT')]
    assert len(r) == 17 and sum(x['method'] == 'distill, one adapter each' for x in r) == 3
    assert len(next((tmp_path/'runs').glob('transfer_composed_*')).read_text().splitlines()) == 12
    r = kept('performance')
    assert set(r['clock']) == {'current', 'float32 products', 'all weights'}
    assert r['bench']['ratio']['edit'] > 0
    assert 'peak memory is estimated before the run within 20% of the measured peak (' in text('performance')

    assert 'both right' in kept('text_ablation')['target'] and len(kept('sensitivity')) == 9
    assert len(kept('forgetting')['ages']) == 6
    assert len(set(kept('model_scaling')) - {'claims'}) == 2
    assert set(kept('known_entities')['target']) == {'popular', 'new'}
    r = kept('instruction_tuning')
    assert set(r['known']) == set(r['held_nats']) == {'before', 'tuned'}
    assert len(list((tmp_path/'runs').glob('tuned-*/model.safetensors'))) == 1
    r = kept('hardware_costs')
    ways = {(x['way'], x['edits_per_batch']) for x in r['rows']}
    assert ways == {('adapter', 1), ('adapter', 2), ('all weights', 1)}
    assert all(x['share'] > 0 for x in r['rows']) and r['one_part']['peak_gib'] > 0
    assert len(r['plan']) == 3
    r = kept('teach_your_own')
    assert r['summary']['entities'] == r['summary']['rounds'] == 1 and r['summary']['facts_not_asked'] > 0
    assert set(r['exam']) == {'explicit, before', 'explicit, after', 'indirect, before', 'indirect, after'}
    assert (tmp_path/'taught'/'adapter_model.safetensors').exists()
    claims = ['explicit_learned', 'minutes', 'known_lost']
    assert [c['id'].split('.')[1] for c in r['claims']] == claims[-len(r['claims']):]

    # methods once more, with all but one method from the file of the run above
    again = {k: v for k, v in given.items() if k.split('.')[0] in ('methods', 'lm', 'device', 'runs')}
    again['skip'] = '["FT definition", "MEMIT", "distill, default"]'
    again['other_runs'] = json.dumps([str(found['methods']['folder']/'results.json')])
    assert main(command('methods', tmp_path/'again', again)) == 0
    a, b = kept('methods'), read_json(tmp_path/'again'/'methods'/'tiny'/'results.json')
    assert b['chosen'] == a['chosen']
    assert {r: list(v) for r, v in b['runs'].items()} == {r: list(v) for r, v in a['runs'].items()}
    assert 'Distillation against *MEMIT*: ' in (tmp_path/'again'/'methods'/'tiny'/'methods.ipynb').read_text()

    # finished reports are not run again
    before = found['tuning']['page'].stat().st_mtime_ns
    assert main(run_all) == 0 and found['tuning']['page'].stat().st_mtime_ns == before
    page = (out/'index.html').read_text()
    assert all(f'{n}/tiny/{n}.html' in page for n in found)
    assert page.count('<img') == sum(bool(r['figures']) for r in found.values())
    assert str(tmp_path) not in page


def test_bad_options_of_reports_run_are_one_sentence(tmp_path, capsys):
    assert main(['reports', 'run', 'all', '--out', str(tmp_path), '-s', 'n_entitys=2']) == 2
    says = "unknown parameter of the reports 'n_entitys': choose one of 'n_entities'"
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(['reports', 'run', 'benchmark_sanity', '--jobs', '0', '--out', str(tmp_path)]) == 2
    assert '0 reports at a time' in capsys.readouterr().err


def test_a_failed_report_stops_no_other(tiny_folder, tmp_path, capsys):
    "Two reports at a time, one of them with a missing model; the same command then runs the missing one."
    lm, out, nowhere = str(tiny_folder()), tmp_path/'outputs', str(tmp_path/'nowhere')
    run = lambda **given: main([
        'reports', 'run', 'benchmark_sanity', 'tuning', '--size', 'tiny', '--label', 'a', '--jobs', '2',
        '--out', str(out), '-s', f"runs={tmp_path/'runs'}", '-s', 'device=cpu',
        '-s', f'tuning.transfer={SHIPPED}', *(a for k, v in given.items() for a in ('-s', f'{k}={v}'))])
    assert run(**{'tuning.lm': lm, 'benchmark_sanity.lm': nowhere}) == 2
    said = capsys.readouterr()
    assert 'tuning: done' in said.out and 'benchmark_sanity: failed' in said.out
    failed = '1 of 2 reports failed: benchmark_sanity: the report benchmark_sanity stopped in a cell'
    assert failed in said.err and 'nowhere' in said.err
    assert run(lm=lm) == 0 and 'tuning: was there' in capsys.readouterr().out
    other = [('lm', lm), ('seed', '1'), ('transfer', str(SHIPPED))]
    says = (
        'tuning/a has a run of tuning with other parameters .seed is 0 there, 1 here.: '
        'give this one a name of its own by --label')
    with pytest.raises(KdnbError, match=says):
        plan_reports(['tuning'], other, size='tiny', out=out, label='a')
    assert index_page(out).read_text().count('<article>') == 2
    jobs = plan_reports(['benchmark_sanity'], [('lm', nowhere)], out=out)
    with pytest.raises(KdnbError, match='stopped in a cell'): run_reports(jobs, progress=False)
