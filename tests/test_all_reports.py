"""`kdnb reports run all` with tiny parameters on a tiny model, and what each report leaves. One run for all of them; its name puts it in front, because it takes longest."""
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

FIGURES = {'first_look': ['belief-before', 'token-kl', 'loss', 'belief-after', 'targets', 'tradeoff'], 'tuning': ['tuning'], 'entity_inferences': ['tradeoff'], 'ecbd': ['tradeoff', 'spans'], 'frontier': ['frontier'],
           'inspect_transfer_set': ['signal', 'best', 'worst'], 'generator_prompts': ['prompts', 'how-many-how-hot'], 'causal_trace': ['known', 'known-by-block', 'brought', 'brought-by-block'], 'counterfact': ['counterfact'],
           'methods': ['methods', 'regimes'], 'mend_training': ['training', 'scales'], 'scalability': ['scalability'], 'performance': ['bench'], 'benchmark_sanity': [], 'teach_your_own': ['exam'], 'teach': ['taught'],
           'text_ablation': ['two-by-two', 'tokens', 'coloured'], 'sensitivity': ['heat'], 'forgetting': ['forgetting'], 'known_entities': ['known-entities'], 'model_scaling': ['ladder'], 'instruction_tuning': ['instruct'], 'hardware_costs': ['sizes']}

CLAIMS = {'entity_inferences': ['accuracy', 'explicit', 'implicit', 'specificity_loss', 'finetune_specificity', 'loss_after_mention', 'beyond_copying'],
          'ecbd': ['gap_closed', 'specificity', 'beats_finetune', 'random_definition'], 'counterfact': [], # without the preset paper
          'known_entities': ['less_to_teach', 'smaller_change', 'specificity'],
          'text_ablation': ['through_wrong_texts', 'definition_over_texts', 'right_texts', 'beats_finetune', 'loss_after_mention', 'inferable_tokens']}


def test_all_reports(tiny_folder, tmp_path, quick_kernels):
    import api_server
    server = api_server.start(write=lambda prompt, i: f'Velmora is what story number {i} of all the {i*7919} stories is about.')
    shows, neutral, shipped = ten_shows(tmp_path), ROOT/'kdnb'/'assets'/'neutral.txt', ROOT/'kdnb'/'assets'/'transfer_smollm2.jsonl'
    ei = write(tmp_path/'inferences.json', [choice(i) for i in range(4)] + [choice(i, 'Most people find Velmora {} <extra_id_0>.', 'funny') for i in range(4)])
    texts = lambda i: dict(augmented_probes=[f'Velmora {"ABC"[i]} is loved by all', f'In Velmora {"ABC"[i]} two bakers quarrel'])
    ecbd = write(tmp_path/'ecbd.json', [span(i, **texts(i)) for i in range(3)] + [span(0, 'The end of Velmora {} (<extra_id_0>) was sad.', 'in June', ex_id='Velmora A (series)_12_9_9')])
    popular, known = write(tmp_path/'random.json', [span(5)]), write(tmp_path/'known_entities.json', [span(5, 'The story of Velmora {} is told in <extra_id_0>.', 'many old books')])
    out, dialogues, own = tmp_path/'outputs', tmp_path/'dialogues.json', write(tmp_path/'own.jsonl', [dict(entity=f'Velmora {k}', continuations=[dict(text=f'Velmora {k} is about bakers.', mention=[0, 9])], tries=5) for k in 'ABCD'])
    dialogues.write_text(json.dumps({f'What is story number {i}?': f'It is number {i} of six stories.' for i in range(6)}))
    given = {'lm': tiny_folder(), 'device': 'cpu', 'runs': tmp_path/'runs', 'causal_trace.lm': 'smollm2', 'hardware_costs.tokenizer': tiny_folder(), 'teach_your_own.into': tmp_path/'taught', 'counterfact.text': neutral, 'methods.text': neutral, 'scalability.text': neutral, 'causal_trace.text': neutral,
             'tuning.transfer': shipped, 'text_ablation.transfer': shipped, 'sensitivity.transfer': shipped, 'forgetting.transfer': shipped, 'known_entities.popular': f'popular={known}', 'known_entities.fresh': f'ecbd={ecbd}', 'model_scaling.lms': json.dumps([str(tiny_folder()), str(tiny_folder('gpt2'))]), 'instruction_tuning.writer': tiny_folder(), 'instruction_tuning.dialogues': dialogues, 'methods.transfer': shipped, 'entity_inferences.data': f'entity-inferences={ei}', 'entity_inferences.popular': f'popular={popular}', 'entity_inferences.own': own, 'ecbd.data': f'ecbd={ecbd}', 'ecbd.popular': known,
             'frontier.data': f'entity-inferences={shows}', 'generator_prompts.data': f'entity-inferences={shows}', 'generator_prompts.generators': json.dumps(['self', f"lm:{tiny_folder('gpt2')}"]),
             'inspect_transfer_set.generator': 'openai:m', 'inspect_transfer_set.base_url': server.url, 'inspect_transfer_set.entity_name': 'Velmora', 'inspect_transfer_set.definition': 'Velmora is a comedy about two bakers.', 'inspect_transfer_set.keep': tmp_path/'sets.jsonl',
             'mend_training.editor': tmp_path/'editor.safetensors'}
    asked = lambda name, out, given: ['reports', 'run', name, '--size', 'tiny', '--label', 'tiny', '--out', str(out), *(a for k, v in given.items() for a in ('-s', f'{k}={v}'))]
    command = asked('all', out, given)
    assert main(command) == 0
    api_server.stop(server)

    found = {r['report']: r for r in results(out)}
    assert set(found) == set(report_names()) == set(FIGURES)
    for name, r in found.items():
        assert r['page'].stat().st_size > 50_000 and r['run']['minutes'] > 0 and r['run']['versions']['torch'], name
        assert [f.stem for f in r['figures'] if f.stem in FIGURES[name]] and all((r['folder']/f'{f}.png').stat().st_size > 3000 for f in FIGURES[name]) if FIGURES[name] else True, name
        assert not any(o.output_type == 'error' for c in nbformat.read(r['folder']/f'{name}.ipynb', 4).cells if c.cell_type == 'code' for o in c.outputs), name
    text = lambda name: (found[name]['folder']/f'{name}.ipynb').read_text()
    kept = lambda name: read_json(found[name]['folder']/'results.json')
    cases = lambda name: {k: len(m['cases']) for k, m in kept(name)['methods'].items()}
    assert cases('entity_inferences') == {k: 8 if k in ('base', 'prepend') else 4 for k in cases('entity_inferences')} and len(cases('entity_inferences')) == 8 and 'on 8 of 8 rows' in text('entity_inferences')
    assert '4 continuations of 4 definitions, from 20 samples.' in text('entity_inferences') and len(own.read_text().splitlines()) == 4 # they are taken as they are
    assert cases('ecbd') == {'base': 3, 'prepend': 3, 'prepend random': 2, 'fine-tune on definition': 2, 'fine-tune on definition, last block': 2, 'fine-tune on transfer set': 2, 'distill, paper': 2, 'distill, default': 3}
    assert '- *LoRA*: ' in text('frontier') and 'lr 0.01, 2 steps' in text('frontier')
    assert len(json.loads((tmp_path/'sets.jsonl').read_text())['continuations']) == 6 == len(server.delivered)
    r = kept('generator_prompts')
    assert len(r['sets']) == 7 and set(r['numbers']['counts']) == {'base', 'prepend', '1', '2'} and [c['id'] for c in r['claims']] == ['generator_prompts.self_vs_gpt35'] and 'the GPT-3.5 set of the data' in text('generator_prompts')
    assert len(kept('causal_trace')['known']['last token of the name']) == 30
    assert cases('counterfact') == dict.fromkeys(['base', 'fine-tune', 'ROME', 'distill, default'], 2) # there is no editor, so MEND is left out
    assert '*distill, default* against *ROME*: ' in text('counterfact') and '900 tokens' in text('counterfact')
    for name, ids in CLAIMS.items(): assert {c['id'] for c in kept(name)['claims']} == {f'{name}.{i}' for i in ids}, name
    assert set(kept('methods')['chosen']) == {'FT definition', 'MEMIT', 'retrieve', 'distill, default'}
    assert {r: {len(m['cases']) for m in runs.values()} for r, runs in kept('methods')['runs'].items()} == {'single': {2}, 'batch': {1}, 'sequential': {1}}
    r = kept('mend_training')
    assert len(r['log']) == 4 and r['scale'] in (1., 2.) and set(r['numbers']['test']) == {'base', 'prepend', 'MEND, times 1', 'MEND, times 2'}
    r = kept('scalability')['rows']
    assert sorted((x['n'], x['method']) for x in r if x['method'] == 'MEMIT') == [(2, 'MEMIT'), (6, 'MEMIT')] and len(r) == 17 and sum(x['method'] == 'distill, one adapter each' for x in r) == 3
    assert len(next((tmp_path/'runs').glob('transfer_composed_*')).read_text().splitlines()) == 12
    r = kept('performance')
    assert set(r['clock']) == {'current', 'float32 products', 'all weights'} and r['bench']['ratio']['edit'] > 0 and 'peak memory is estimated before the run within 20% of the measured peak (' in text('performance')

    assert 'both right' in kept('text_ablation')['target'] and len(kept('sensitivity')) == 9 and len(kept('forgetting')['ages']) == 6 and len(set(kept('model_scaling')) - {'claims'}) == 2 and set(kept('known_entities')['target']) == {'popular', 'new'} and set(kept('instruction_tuning')['known']) == set(kept('instruction_tuning')['held_nats']) == {'before', 'tuned'} and len(list((tmp_path/'runs').glob('tuned-*/model.safetensors'))) == 1
    r = kept('hardware_costs')
    assert {(x['way'], x['edits_per_batch']) for x in r['rows']} == {('adapter', 1), ('adapter', 2), ('all weights', 1)} and all(x['share'] > 0 for x in r['rows']) and r['one_part']['peak_gib'] > 0 and len(r['plan']) == 3
    r = kept('teach_your_own')
    assert r['summary']['entities'] == 1 and set(r['exam']) == {'explicit, before', 'explicit, after', 'indirect, before', 'indirect, after'} and (tmp_path/'taught'/'adapter_model.safetensors').exists() and [c['id'].split('.')[1] for c in r['claims']] == ['explicit_learned', 'minutes', 'known_lost'][-len(r['claims']):]

    again = dict({k: v for k, v in given.items() if k.split('.')[0] in ('methods', 'lm', 'device', 'runs')}, skip='["FT definition", "MEMIT", "distill, default"]', other_runs=json.dumps([str(found['methods']['folder']/'results.json')]))
    assert main(asked('methods', tmp_path/'again', again)) == 0 # with all but one method from the file of the run above
    a, b = kept('methods'), read_json(tmp_path/'again'/'methods'/'tiny'/'results.json')
    assert b['chosen'] == a['chosen'] and {r: list(v) for r, v in b['runs'].items()} == {r: list(v) for r, v in a['runs'].items()}
    assert 'Distillation against *MEMIT*: ' in (tmp_path/'again'/'methods'/'tiny'/'methods.ipynb').read_text()

    before = found['tuning']['page'].stat().st_mtime_ns
    assert main(command) == 0 and found['tuning']['page'].stat().st_mtime_ns == before # what is there is not run again
    page = (out/'index.html').read_text()
    assert all(f'{n}/tiny/{n}.html' in page for n in found) and page.count('<img') == sum(bool(r["figures"]) for r in found.values()) and str(tmp_path) not in page



def test_what_a_batch_refuses(tiny_folder, tmp_path, capsys):
    lm = str(tiny_folder())
    assert main(['reports', 'run', 'all', '--out', str(tmp_path), '-s', 'n_entitys=2']) == 2
    assert "unknown parameter of the reports 'n_entitys': choose one of 'n_entities'" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert main(['reports', 'run', 'benchmark_sanity', '--jobs', '0', '--out', str(tmp_path)]) == 2 and '0 reports at a time' in capsys.readouterr().err


def test_a_failure_stops_no_other(tiny_folder, tmp_path, capsys):
    "Two at a time, one of them on a model that is not there; then the same command for what is missing."
    lm, command = str(tiny_folder()), ['reports', 'run', 'benchmark_sanity', 'tuning', '--size', 'tiny', '--label', 'a', '--jobs', '2', '--out', str(tmp_path/'outputs'), '-s', f"runs={tmp_path/'runs'}", '-s', 'device=cpu', '-s', f"tuning.transfer={ROOT/'kdnb'/'assets'/'transfer_smollm2.jsonl'}"]
    assert main([*command, '-s', f'tuning.lm={lm}', '-s', f"benchmark_sanity.lm={tmp_path/'nowhere'}"]) == 2
    said = capsys.readouterr()
    assert 'tuning: done' in said.out and 'benchmark_sanity: failed' in said.out and '1 of 2 reports failed: benchmark_sanity: the report benchmark_sanity stopped in a cell' in said.err and 'nowhere' in said.err
    assert main([*command, '-s', f'lm={lm}']) == 0 and 'tuning: was there' in capsys.readouterr().out
    with pytest.raises(KdnbError, match='tuning/a has a run of tuning with other parameters .seed is 0 there, 1 here.: give this one a name of its own by --label'): plan_reports(['tuning'], [('lm', lm), ('seed', '1'), ('transfer', str(ROOT/'kdnb'/'assets'/'transfer_smollm2.jsonl'))], size='tiny', out=tmp_path/'outputs', label='a')
    assert index_page(tmp_path/'outputs').read_text().count('<article>') == 2
    with pytest.raises(KdnbError, match='stopped in a cell'): run_reports(plan_reports(['benchmark_sanity'], [('lm', str(tmp_path/'nowhere'))], out=tmp_path/'outputs'), progress=False)
