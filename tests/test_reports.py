"""Reports run through papermill with tiny parameters, in a minute, on a tiny model."""
import json

import nbformat, pytest
from conftest import ROOT
from kdnb.entities import KdnbError
from kdnb.report import run_report


def test_first_look(tiny_folder, tmp_path):
    html = run_report('first_look', tmp_path/'out', lm=str(tiny_folder()), device='cpu', n_entities=2, steps=2, n_specificity=6, runs=str(tmp_path/'runs'),
                      methods=['base', 'prepend', 'distill'], lr=1e-3)
    assert html.stat().st_size > 50_000
    for f in ('belief-before', 'token-kl', 'loss', 'belief-after', 'targets', 'tradeoff'): assert (tmp_path/'out'/f'{f}.png').stat().st_size > 3000, f
    nb = nbformat.read(tmp_path/'out'/'first_look.ipynb', 4)
    assert all(c.outputs is not None and not any(o.output_type == 'error' for o in c.outputs) for c in nb.cells if c.cell_type == 'code')


def test_first_look_on_a_users_own_entities_with_a_built_in_model(tmp_path):
    "Names of our own entities have shipped transfer sets; a user's have none, so they are made."
    mine = (ROOT/'kdnb'/'data'/'entities.jsonl').read_text(encoding='utf-8').splitlines()[:2]
    names = [json.loads(l)['name'] for l in mine]
    (tmp_path/'mine.jsonl').write_text('\n'.join(l.replace(n, f'Zor{n}') for l, n in zip(mine, names)), encoding='utf-8')
    run_report('first_look', tmp_path/'out', lm='smollm2', data=str(tmp_path/'mine.jsonl'), split='', n_entities=2, steps=1, n_specificity=4, free=False, methods=['base', 'prepend', 'distill'], runs=str(tmp_path/'runs'))
    assert [json.loads(l)['entity'] for l in next((tmp_path/'runs').glob('transfer_*.jsonl')).read_text(encoding='utf-8').splitlines()] == [f'Zor{n}' for n in names]


def test_data_check(tiny_folder, tmp_path):
    html = run_report('data_check', tmp_path/'out', lm=str(tiny_folder()), device='cpu', n_entities=3, n_specificity=6, runs=str(tmp_path/'runs'), check=False)
    assert html.stat().st_size > 50_000


def test_tuning(tiny_folder, tmp_path):
    grid = [['distill', {'steps': 1}], ['finetune-definition', {'steps': 1, 'anchor': 0}]]
    html = run_report('tuning', tmp_path/'out', lm=str(tiny_folder()), device='cpu', n_entities=2, n_specificity=6, runs=str(tmp_path/'runs'), grid=grid, transfer=str(ROOT/'kdnb'/'data'/'transfer_smollm2.jsonl'))
    assert html.stat().st_size > 50_000


def test_a_report_that_fails_says_so(tiny_folder, tmp_path):
    with pytest.raises(KdnbError, match='the report first_look stopped in a cell'): run_report('first_look', tmp_path/'out', lm=str(tiny_folder()), device='cpu', split='train')
    assert not (tmp_path/'out'/'first_look.ipynb').exists() and not (tmp_path/'out'/'first_look.html').exists()


def test_entity_inferences(tiny_folder, tmp_path):
    from test_benchmarks import choice, span, write
    ei = write(tmp_path/'ei.json', [choice(i) for i in range(4)] + [choice(i, 'Most people find Velmora {} <extra_id_0>.', 'funny') for i in range(4)])
    popular = write(tmp_path/'popular.json', [span(5)])
    own = tmp_path/'own.jsonl'
    html = run_report('entity_inferences', tmp_path/'out', lm=str(tiny_folder()), device='cpu', data=f'entity-inferences={ei}', popular=f'popular={popular}', limit=4, whole=['base', 'prepend'], runs=str(tmp_path/'runs'),
                      skip=['distill, kdnb, own set', 'distill, kdnb'], results=str(tmp_path/'out'/'results.json'))
    assert html.stat().st_size > 50_000 and (tmp_path/'out'/'tradeoff.png').stat().st_size > 3000
    r = json.loads((tmp_path/'out'/'results.json').read_text())
    assert {k: len(m['cases']) for k, m in r['methods'].items()} == {k: 8 if k in ('base', 'prepend') else 4 for k in r['methods']} and len(r['methods']) == 8
    assert 'on 8 of 8 rows' in (tmp_path/'out'/'entity_inferences.ipynb').read_text()


def test_ecbd(tiny_folder, tmp_path):
    from dataclasses import asdict
    from kdnb.transfer import Continuation, TransferSet
    from test_benchmarks import span, write
    texts = lambda i: dict(augmented_probes=[f'Velmora {"ABC"[i]} is loved by all', f'In Velmora {"ABC"[i]} two bakers quarrel'])
    data = write(tmp_path/'ecbd.json', [span(i, **texts(i)) for i in range(3)] + [span(0, 'The end of Velmora {} (<extra_id_0>) was sad.', 'in June', ex_id='Velmora A (series)_12_9_9')])
    popular = write(tmp_path/'popular.json', [span(5, 'The story of Velmora {} is told in <extra_id_0>.', 'many old books')])
    html = run_report('ecbd', tmp_path/'out', lm=str(tiny_folder()), device='cpu', data=f'ecbd={data}', popular=str(popular), limit=2, whole=['base', 'prepend', 'distill, kdnb'], runs=str(tmp_path/'runs'), results=str(tmp_path/'out'/'results.json'), skip=['distill, paper, all tokens'])
    assert html.stat().st_size > 50_000 and all((tmp_path/'out'/f).stat().st_size > 3000 for f in ('tradeoff.png', 'spans.png'))
    assert {k: len(m['cases']) for k, m in json.loads((tmp_path/'out'/'results.json').read_text())['methods'].items()} == {'base': 3, 'prepend': 3, 'prepend random': 2, 'fine-tune on definition': 2, 'fine-tune on definition, last block': 2, 'fine-tune on transfer set': 2, 'distill, paper': 2, 'distill, kdnb': 3}


def ten_shows(folder):
    "A file of Entity Inferences with enough names for a split dev."
    from test_benchmarks import choice, write
    names = ['Velmora', 'Zorbel', 'Quint', 'Harno', 'Pell', 'Sarn', 'Tove', 'Ulmo', 'Brask', 'Ivor']
    def named(i, n): return json.loads(json.dumps(choice(0, ex_id=f'tv_dev_{i}')).replace('Velmora A', n))
    return write(folder/'ei.json', [named(i, n) for i, n in enumerate(names)])


def test_tuning_on_a_benchmark(tiny_folder, tmp_path):
    ei = ten_shows(tmp_path)
    html = run_report('tuning', tmp_path/'out', lm=str(tiny_folder()), device='cpu', data=f'entity-inferences={ei}', n_entities=1, runs=str(tmp_path/'runs'), grid=[['distill', {'steps': 1}], ['distill', {'protocol': 'paper', 'steps': 1}]])
    assert html.stat().st_size > 50_000 and (tmp_path/'out'/'tuning.png').stat().st_size > 3000


def test_frontier(tiny_folder, tmp_path):
    ei = ten_shows(tmp_path)
    run_report('frontier', tmp_path/'out', lm=str(tiny_folder()), device='cpu', data=f'entity-inferences={ei}', runs=str(tmp_path/'runs'), lrs=[1e-3, 1e-2], steps=[1, 2], at=[1e-3, 2], levers={'LoRA': {'trainable': 'lora', 'lr': 2e-3}, 'stop at 0.3 nats': {'enough': .3}, 'anchor on text it wrote': {'anchor': 1.0, 'anchor_file': 'written'}})
    assert (tmp_path/'out'/'frontier.png').stat().st_size > 3000
    text = (tmp_path/'out'/'frontier.ipynb').read_text()
    assert '- *LoRA*: ' in text and 'lr 0.01, 2 steps' in text


def test_generate(tiny_folder, tmp_path, monkeypatch):
    import api_server
    server = api_server.start(write=lambda prompt, i: f'Velmora is what story number {i} of all the {i*7919} stories is about.')
    html = run_report('generate', tmp_path/'out', lm=str(tiny_folder()), device='cpu', entity_name='Velmora', definition='Velmora is a comedy about two bakers.', generator='openai:m', base_url=server.url, prompts=['paper', 'genres'], n=6, keep=str(tmp_path/'sets.jsonl'))
    api_server.stop(server)
    assert html.stat().st_size > 50_000 and all((tmp_path/'out'/f'{f}.png').stat().st_size > 3000 for f in ('signal', 'best', 'worst'))
    assert len(json.loads((tmp_path/'sets.jsonl').read_text())['continuations']) == 6 == len(server.delivered)


def test_generator_prompts(tiny_folder, tmp_path):
    ei = ten_shows(tmp_path)
    how = dict(lm=str(tiny_folder()), device='cpu', data=f'entity-inferences={ei}', n_entities=2, runs=str(tmp_path/'runs'), generators=['self', f"lm:{tiny_folder('gpt2')}"], prompts=['named', 'definition'], mix=['named', 'started'], n=3, counts=[1, 2], temperatures=[.5], results=str(tmp_path/'out'/'results.json'))
    html = run_report('generator_prompts', tmp_path/'out', **how)
    assert html.stat().st_size > 50_000 and all((tmp_path/'out'/f'{f}.png').stat().st_size > 3000 for f in ('prompts', 'how-many-how-hot'))
    r = json.loads((tmp_path/'out'/'results.json').read_text())
    assert len(r['sets']) == 7 and set(r['numbers']['counts']) == {'base', 'prepend', '1', '2'} and 'the set of GPT-3.5 that comes with the data' in (tmp_path/'out'/'generator_prompts.ipynb').read_text()


def test_causal_trace(tmp_path):
    "A real model: a tiny one knows nothing that could be traced."
    html = run_report('causal_trace', tmp_path/'out', lm='smollm2', n_known=1, n_entities=1, samples=1, steps=5, text=str(ROOT/'kdnb'/'data'/'neutral.txt'), methods={'distill': {'lr': 8e-3}}, results=str(tmp_path/'out'/'results.json'))
    assert html.stat().st_size > 50_000 and all((tmp_path/'out'/f'{f}.png').stat().st_size > 3000 for f in ('known', 'known-by-block', 'brought', 'brought-by-block'))
    assert len(json.loads((tmp_path/'out'/'results.json').read_text())['known']['last token of the name']) == 30


def test_counterfact(tiny_folder, tmp_path):
    how = dict(lm=str(tiny_folder()), device='cpu', limit=2, n_own=2, runs=str(tmp_path/'runs'), text=str(ROOT/'kdnb'/'data'/'neutral.txt'), tokens=[500, 900])
    methods = {'base': ['base', {}], 'fine-tune': ['finetune-definition', {'steps': 2}], 'ROME': ['rome', {'steps': 2}], 'MEND': ['mend', {}], 'distill, kdnb': ['distill', {'steps': 2}]}
    html = run_report('counterfact', tmp_path/'out', methods=methods, results=str(tmp_path/'out'/'results.json'), **how)
    assert html.stat().st_size > 50_000 and (tmp_path/'out'/'counterfact.png').stat().st_size > 3000
    r = json.loads((tmp_path/'out'/'results.json').read_text())['methods']
    assert list(r) == ['base', 'fine-tune', 'ROME', 'distill, kdnb'] and all(len(m['cases']) == 2 for m in r.values()) # there is no editor, so MEND is left out
    text = (tmp_path/'out'/'counterfact.ipynb').read_text()
    assert '*distill, kdnb* against *ROME*: ' in text and '900 tokens' in text


def test_methods(tiny_folder, tmp_path):
    grids = {'FT definition': ['finetune-definition', {'steps': 2}, [{'lr': 1e-4}, {'lr': 1e-3}]], 'MEMIT': ['memit', {'steps': 2, 'layers': 1}, [{}, {'clamp': 2.}]], 'retrieve': ['retrieve', {}, [{}, {'above': 2.}]], 'distill, kdnb': ['distill', {'steps': 2}, [{}, {'lr': 1e-3}]]}
    how = dict(lm=str(tiny_folder()), device='cpu', n_dev=1, n_entities=2, n_specificity=6, runs=str(tmp_path/'runs'), grids=grids, transfer=str(ROOT/'kdnb'/'data'/'transfer_smollm2.jsonl'), text=str(ROOT/'kdnb'/'data'/'neutral.txt'))
    html = run_report('methods', tmp_path/'out', results=str(tmp_path/'out'/'results.json'), **how)
    assert html.stat().st_size > 50_000 and all((tmp_path/'out'/f'{f}.png').stat().st_size > 3000 for f in ('methods', 'regimes'))
    r = json.loads((tmp_path/'out'/'results.json').read_text())
    assert set(r['chosen']) == set(grids) and all(len(m['cases']) == 2 for m in r['methods'].values())
    uneven = {**grids, 'MEMIT': ['memit', {}, [{}]]}
    with pytest.raises(KdnbError, match='every method must have the same number of tries, and here they have .1, 2.'): run_report('methods', tmp_path/'out2', **{**how, 'grids': uneven})


def test_mend_training(tiny_folder, tmp_path):
    how = dict(lm=str(tiny_folder()), device='cpu', editor=str(tmp_path/'editor.safetensors'), composed=6, practice={'steps': 4, 'rank': 4, 'blocks': 1}, scales=[1., 2.], n_entities=1, n_specificity=6, runs=str(tmp_path/'runs'))
    run_report('mend_training', tmp_path/'out', results=str(tmp_path/'out'/'results.json'), **how)
    assert all((tmp_path/'out'/f'{f}.png').stat().st_size > 3000 for f in ('training', 'scales'))
    r = json.loads((tmp_path/'out'/'results.json').read_text())
    assert len(r['log']) == 4 and r['scale'] in (1., 2.) and set(r['numbers']['test']) == {'base', 'prepend', 'MEND, times 1', 'MEND, times 2'}


def test_scalability(tiny_folder, tmp_path):
    methods = {'distill, adapter': ['distill', {'steps': 1, 'top': 50, 'together': 2}], 'MEMIT': ['memit', {'steps': 2, 'layers': 1}], 'retrieve': ['retrieve', {}]}
    how = dict(lm=str(tiny_folder()), device='cpu', counts=[2, 6, 12], n_single=2, n_own=2, prompts=['named'], n_specificity=6, methods=methods, single=['distill, adapter'], most={'MEMIT': 6}, text=str(ROOT/'kdnb'/'data'/'neutral.txt'), runs=str(tmp_path/'runs'))
    run_report('scalability', tmp_path/'out', results=str(tmp_path/'out'/'results.json'), **how)
    assert (tmp_path/'out'/'scalability.png').stat().st_size > 3000
    r = json.loads((tmp_path/'out'/'results.json').read_text())
    assert sorted((x['n'], x['method']) for x in r['rows'] if x['method'] == 'MEMIT') == [(2, 'MEMIT'), (6, 'MEMIT')] and len(r['rows']) == 14
    assert len((tmp_path/'runs').joinpath(next(p.name for p in (tmp_path/'runs').glob('transfer_composed_*'))).read_text().splitlines()) == 12


def test_performance(tiny_folder, tmp_path):
    how = dict(lm=str(tiny_folder()), device='cpu', n_specificity=2, n_check=2, settings={'steps': 1}, savings={'float32 products': {'precision': 'float32'}, 'all weights': {'trainable': 'all'}}, same=['float32 products'], runs=str(tmp_path/'runs'))
    run_report('performance', tmp_path/'out', results=str(tmp_path/'out'/'results.json'), **how)
    assert (tmp_path/'out'/'bench.png').stat().st_size > 3000
    r = json.loads((tmp_path/'out'/'results.json').read_text())
    assert set(r['clock']) == {'as it is', 'float32 products', 'all weights'} and r['bench']['ratio']['edit'] > 0
    assert 'memory is told beforehand' in (tmp_path/'out'/'performance.ipynb').read_text()
