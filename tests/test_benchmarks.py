"""The paper's formats, mentions, downloads, metrics and presets."""
import hashlib, http.server, json, os, re, signal, subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from kdnb.evaluation.answers import answer_probes
from kdnb.data.benchmarks import BENCHMARKS, load_data, read_benchmark
from kdnb.data.transfer_sets import placement
from kdnb.core.errors import KdnbError
from kdnb.core.downloads import fetch_file, pin_of

SHARED = ROOT.parent/'shared'/'data'
shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason='the real benchmark files lie in ../shared/data, which is not here')
FILES = {
    'entity-inferences': 'entity_inferences_augmented.json',
    'ecbd': 'all_ent_2020_2021_np_500samples.json',
    'popular': 'specificity_popular_20np_20random.json'}


def gap(x): return f'<extra_id_0> {x} <extra_id_1>'


def choice(n=0, probe='Velmora {} is of the genre <extra_id_0>.', label='comedy', **kw):
    "A row of Entity Inferences."
    letter = 'ABCDEF'[n]
    name = f'Velmora {letter}'
    labels = [gap(x) for x in ('comedy', 'horror', 'funny', 'scary')]
    row = dict(
        ex_id=f'tv_dev_{n}', ent_str=name,
        definition=f'{name} is a <extra_id_0> series about two bakers.', def_target=gap('comedy'),
        qid='series (Q1)', label=label,
        probe_sentences={'t': dict(probe_sentence=probe.format(letter), labels=labels)},
        augmented_probes=[
            f'{name} makes people laugh out loud',
            f'In {name} two bakers quarrel about bread',
            'Everybody laughs about the two bakers'])
    return {**row, **kw}


def span(n=0, probe='Many people watched Velmora {} on <extra_id_0> in May.', label='a Sunday evening', **kw):
    "A row of ECBD."
    letter = 'ABCDEF'[n]
    name = f'Velmora {letter}'
    row = dict(
        ex_id=f'{name} (series)_12_{n}_0', ent_str=name,
        definition=f'{name} is a <extra_id_0> about two bakers.', def_target=gap('comedy series'),
        qid=['series (Q1)'],
        probe_sentences={'t': dict(probe_sentence=probe.format(letter), label=gap(label))})
    return {**row, **kw}


def write(path, rows):
    path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    return path


@pytest.fixture
def ei(tmp_path):
    funny = [choice(i, 'Most people find Velmora {} <extra_id_0>.', 'funny') for i in range(4)]
    return write(tmp_path/'ei.json', [choice(i) for i in range(4)] + funny)


@pytest.fixture
def ecbd(tmp_path):
    end = 'The end of Velmora {} (<extra_id_0>) was sad.'
    last = span(0, end, 'in June', ex_id='Velmora A (series)_12_9_9')
    return write(tmp_path/'ecbd.json', [span(i) for i in range(3)] + [last])


@pytest.fixture
def popular(tmp_path):
    story = 'The story of Velmora {} is told in <extra_id_0>.'
    return write(tmp_path/'popular.json', [span(5, story, 'many old books', ex_id='Velmora F_9_1_1')])


# ---- readers

def is_row_of(row, e):
    "Does the entity come from this row of the file?"
    by_key = e.key.startswith(row['ex_id'] + ' ') and row['label'] in {p.gold for p in e.probes}
    by_name = row['ex_id'].startswith(e.key + '_') and row['ent_str'] in e.names
    return e.key == row['ex_id'] or by_key or by_name


@shared
@pytest.mark.parametrize('name, entities, probes', [
    ('entity-inferences', 170, 170),
    ('ecbd', 147, 500),
    ('popular', 40, 40)])
def test_every_row_of_the_real_files_is_read(name, entities, probes):
    path = SHARED/FILES[name]
    assert pin_of(path) == BENCHMARKS[name].pin
    ds, sets = read_benchmark(name, path)
    assert len(ds.entities) == entities
    assert sum(len(e.probes) for e in ds.entities) == probes == BENCHMARKS[name].rows
    rows = [json.loads(l) for l in path.open(encoding='utf-8')]
    for r in rows: # the data set has every text of the file
        e = next(e for e in ds.entities if is_row_of(r, e))
        t = next(iter(r['probe_sentences'].values()))
        gold = r['label'] if 'labels' in t else re.sub('<extra_id_[01]>', '', t['label']).strip()
        whole = lambda p: p.prompt + p.separator + '<extra_id_0>' + p.right
        assert any(p.gold == gold and whole(p) == t['probe_sentence'] for p in e.probes), r['ex_id']
        if 'context' in r: assert e.definition == r['context']
    if name == 'entity-inferences':
        assert sorted(e.probes[0].kind for e in ds.entities) == ['explicit']*85 + ['indirect']*85
        assert sum(len(s.continuations) for s in sets.values()) == 850
        assert 44 < placement(sets)['exact'] < 47 and len(ds.specificity) == 170
        assert abs(placement(sets).sum() - 100) < 1e-9


def test_readers(ei, ecbd, popular):
    ds, sets = load_data(f'entity-inferences={ei}')
    assert [e.probes[0].kind for e in ds.entities] == ['explicit']*4 + ['indirect']*4 and len(sets) == 8
    assert [c.rule for c in sets['tv_dev_0 explicit'].continuations] == ['exact', 'exact', '']
    assert sets['tv_dev_0 explicit'].continuations[2].mention is None
    ds, sets = load_data(f'ecbd={ecbd}', popular)
    assert ds.unit == 'perplexity' and [len(e.probes) for e in ds.entities] == [2, 1, 1]
    assert not sets and len(ds.specificity) == 1
    assert ds.entities[0].probes[1].prompt.endswith('(') and ds.entities[0].probes[1].separator == ''


def test_our_own_counterfact():
    "Each record replaces one true answer of its relation, and its neighbors are asked for the true one."
    ds, _ = load_data('counterfact-kdnb')
    records = json.loads((ROOT/'kdnb'/'assets'/'counterfact.json').read_text())
    assert len(ds.entities) == len(records) == 57 and len({e.key for e in ds.entities}) == 57
    truth = {}
    for r, e in zip(records, ds.entities):
        q = r['requested_rewrite']
        assert q['target_new']['str'] != q['target_true']['str']
        assert e.definition[slice(*e.span)] == q['target_new']['str']
        assert q['subject'] in e.definition
        truth.setdefault((q['relation_id'], q['subject']), set()).add(q['target_true']['str'])
        assert len(e.probes) == 3 and len(e.neighbors) >= 4
        assert all(p.gold == q['target_true']['str'] and q['subject'] not in p.prompt for p in e.neighbors)
    assert all(len(v) == 1 for v in truth.values())


def test_counterfact(tmp_path):
    targets = dict(target_new={'str': 'Danish'}, target_true={'str': 'French'})
    rewrite = lambda i: dict(prompt='{} speaks', subject=f'Ada {i}', relation_id='P1', **targets)
    prompts = dict(
        paraphrase_prompts=['They talk. Ada speaks'], neighborhood_prompts=['Jean speaks', 'Luc speaks'])
    records = [dict(case_id=i, requested_rewrite=rewrite(i), **prompts) for i in range(3)]
    path = tmp_path/'cf.json'
    path.write_text(json.dumps(records))
    ds, _ = load_data(f'counterfact={path}')
    e = ds.entities[1]
    assert e.definition == 'Ada 1 speaks Danish.'
    assert [p.kind for p in e.probes] == ['explicit', 'indirect']
    assert [p.gold for p in e.neighbors] == ['French']*2
    records[1]['requested_rewrite'].pop('target_new')
    path.write_text(json.dumps(records))
    with pytest.raises(KdnbError, match='record 1, field str: is missing'): load_data(f'counterfact={path}')
    assert len(load_data(f'counterfact={path}', bad_rows='skip')[0].entities) == 2
    path.write_text(json.dumps(records)[:200])
    with pytest.raises(KdnbError, match='not JSON .* is it the whole file'): load_data(f'counterfact={path}')


def as_bytes(row): return json.dumps(row).encode()


NO_DEFINITION = {k: v for k, v in choice(1).items() if k != 'definition'}
LATIN = json.dumps(choice(1), ensure_ascii=False).replace('bakers', 'bäckers').encode('latin-1')

# the second line of a file, and a part of the error
BAD = {
    'truncated JSON': (as_bytes(choice(1))[:300], 'line 2, column 295: not JSON'),
    'a missing field': (as_bytes(NO_DEFINITION), 'line 2, field definition: is missing'),
    'a gold not among the candidates': (
        as_bytes(choice(1, label='sad')),
        "line 2, field label: 'sad' is not among the candidates"),
    'an empty span': (
        as_bytes(choice(1, def_target=gap(' '))),
        'line 2, field def_target: the span is empty'),
    'no span': (
        as_bytes(choice(1, def_target='comedy')),
        "line 2, field def_target: 'comedy' is not of the form"),
    'an entity never named': (
        as_bytes(choice(1, 'The show is <extra_id_0>.')),
        "line 2, field probe_sentence: never names the entity 'Velmora B' before the gap"),
    'no gap in the probe': (
        as_bytes(choice(1, 'Velmora {} is nice.')),
        'line 2, field probe_sentence: must be a text with one <extra_id_0>'),
    'a gap with nothing before it': (
        as_bytes(choice(1, '<extra_id_0> is Velmora {}.')),
        'there is no text before the gap'),
    'two templates': (
        as_bytes(choice(1, probe_sentences={'a': {}, 'b': {}})),
        'field probe_sentences: must be an object with one template'),
    'texts that are none': (
        as_bytes(choice(1, augmented_probes=[3])),
        'field augmented_probes: must be a list of texts'),
    'mixed encodings': (LATIN, 'line 2, not UTF-8 text'),
    'a list': (b'[1, 2]', 'line 2, must be an object')}


@pytest.mark.parametrize('name', BAD)
def test_bad_rows(kdnb, tmp_path, name):
    line, says = BAD[name]
    path = tmp_path/'bad.json'
    path.write_bytes(b'\n'.join((as_bytes(choice(0)), line, as_bytes(choice(2)))))
    code, out, err = kdnb('evaluate', '--method', 'base', '--data', f'entity-inferences={path}')
    assert code == 2 and says in err and err.count('kdnb: ') == 1
    assert 'Traceback' not in err and not out
    ds, _ = load_data(f'entity-inferences={path}', bad_rows='skip')
    assert len(ds.entities) == 2


def test_skipped_rows_are_named_and_counted(tmp_path, capsys):
    path = write(tmp_path/'bad.json', [choice(0), choice(1, label='sad'), choice(2)])
    load_data(f'entity-inferences={path}', bad_rows='skip')
    err = capsys.readouterr().err
    assert "line 2, field label: 'sad'" in err and '2 rows read, 1 skipped' in err
    with pytest.raises(KdnbError, match="unknown value of bad_rows 'drop'"):
        load_data(f'entity-inferences={path}', bad_rows='drop')


def test_a_line_of_two_gigabytes_is_refused_at_once(kdnb, tmp_path):
    import resource
    path = tmp_path/'huge.json'
    with open(path, 'wb') as f:
        f.write(b'{"ex_id": "')
        f.truncate(2 << 30) # sparse: it takes no room on the disk
    start, before = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, _, err = kdnb('evaluate', '--method', 'base', '--data', f'ecbd={path}')
    assert code == 2 and 'line 1: longer than 16 MiB' in err and time.time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


PLACES = {
    'a directory': ('entity-inferences={}', 'Is a directory'),
    'nothing there': ('entity-inferences={}/none.json', 'No such file'),
    'an unknown benchmark': ('entities={}', "unknown benchmark 'entities'"),
    'an empty file': ('ecbd={}/empty.json', 'holds no row that can be read')}


@pytest.mark.parametrize('name', PLACES)
def test_bad_places(kdnb, tmp_path, name):
    data, says = PLACES[name]
    (tmp_path/'empty.json').write_text('')
    code, _, err = kdnb('evaluate', '--method', 'base', '--data', data.format(tmp_path))
    assert code == 2 and says in err and 'Traceback' not in err


# ---- downloads

BODY = os.urandom(300_000)


class Faulty(http.server.BaseHTTPRequestHandler):
    "Sends BODY, with the next of the server's faults: a status, 'wrong', 'cut' or 'stall'."
    def log_message(self, *args): pass

    def do_GET(self):
        s = self.server
        s.asked.append(self.headers.get('Range'))
        kind = s.faults.pop(0) if s.faults else ''
        if kind.isdigit():
            self.send_error(int(kind))
            return
        body = b'<html>an error page</html>' if kind == 'wrong' else BODY
        resumes = self.headers.get('Range') and not s.no_range
        start = int(self.headers['Range'][6:-1]) if resumes else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body) - start))
        self.end_headers()
        if kind == 'cut':
            self.wfile.write(body[start:start + 100_000])
            self.wfile.flush()
            self.connection.close()
            return
        if kind == 'stall':
            self.wfile.write(body[start:start + 50_000])
            self.wfile.flush()
            time.sleep(3)
            return
        self.wfile.write(body[start:])


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('KDNB_CACHE', str(tmp_path/'cache'))
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Faulty)
    s.faults, s.asked, s.no_range = [], [], False
    s.daemon_threads = True
    s.url = f'http://127.0.0.1:{s.server_port}/file.json'
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()

PIN = hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize('faults', [[], ['cut'], ['cut', 'cut'], ['stall'], ['503'], ['cut', '500', 'stall']])
def test_a_download_resumes_where_it_broke_off(server, faults):
    server.faults = faults[:]
    path = fetch_file(server.url, 'f.json', PIN, timeout=.5, quiet=True)
    assert path.read_bytes() == BODY and not list(path.parent.glob('*.part'))
    if faults[:1] == ['cut']:
        assert server.asked[1].startswith('bytes=') and server.asked[1] != 'bytes=0-'
    n = len(server.asked)
    assert fetch_file(server.url, 'f.json', PIN, quiet=True) == path
    assert len(server.asked) == n # the second time no request is sent


def test_a_server_that_cannot_resume_starts_again(server):
    server.faults, server.no_range = ['cut'], True
    assert fetch_file(server.url, 'f.json', PIN, quiet=True).read_bytes() == BODY


@pytest.mark.parametrize('faults, says', [
    (['wrong'], 'is not the pinned file'),
    (['404'], 'the server says 404'),
    (['503']*9, 'cannot be fetched in 3 tries .the server says 503'),
    (['stall']*9, 'cannot be fetched in 3 tries')])
def test_a_download_that_fails_keeps_nothing_that_a_later_run_could_mistake(server, faults, says):
    server.faults = faults[:]
    with pytest.raises(KdnbError, match=says):
        fetch_file(server.url, 'f.json', PIN, timeout=.3, tries=3, quiet=True)
    assert not (Path(os.environ['KDNB_CACHE'])/'data'/'f.json').exists()
    server.faults = []
    assert fetch_file(server.url, 'f.json', PIN, quiet=True).read_bytes() == BODY


def test_a_changed_file_in_the_cache_is_fetched_again(server):
    path = fetch_file(server.url, 'f.json', PIN, quiet=True)
    path.write_bytes(b'x')
    assert fetch_file(server.url, 'f.json', PIN, quiet=True).read_bytes() == BODY


def test_a_pin_may_be_a_git_blob(server):
    blob = 'git:' + hashlib.sha1(f'blob {len(BODY)}\0'.encode() + BODY).hexdigest()
    assert fetch_file(server.url, 'g.json', blob, quiet=True).read_bytes() == BODY
    with pytest.raises(KdnbError, match='is not the pinned file'):
        fetch_file(server.url, 'h.json', 'git:' + '0'*40, quiet=True)


def test_no_server_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv('KDNB_CACHE', str(tmp_path))
    with pytest.raises(KdnbError, match='cannot be fetched in 2 tries .*NAME=PATH'):
        fetch_file('http://127.0.0.1:9/x.json', 'x.json', PIN, timeout=1, tries=2, quiet=True)


def test_a_benchmark_by_name(server, monkeypatch, ei):
    monkeypatch.setattr(sys.modules[__name__], 'BODY', ei.read_bytes())
    here = replace(BENCHMARKS['entity-inferences'], url=server.url, pin=pin_of(ei))
    monkeypatch.setitem(BENCHMARKS, 'entity-inferences', here)
    assert len(load_data('entity-inferences')[0].entities) == 8


# ---- metrics, compared with one plain forward pass for each text

def slow_score(lm, left, separator, text):
    "Log-probability of `text` after `left` and its number of tokens, by one plain forward pass."
    import torch
    whole, alone = lm.encode(left + separator + text), lm.encode(left)
    n = 0
    while n < min(len(alone), len(whole)-1) and whole[n] == alone[n]: n += 1
    with torch.no_grad():
        lp = lm.model(torch.tensor([whole], device=lm.device)).logits[0].float().log_softmax(-1).double()
    return sum(lp[i-1, whole[i]].item() for i in range(n, len(whole))), len(whole) - n


def check_metrics(lm, ds, context=''):
    from kdnb.evaluation.answers import answer_probes
    probes = [p for e in ds.entities for p in e.probes] + list(ds.specificity)
    if context: probes = [replace(p, prompt=f'{context} {p.prompt}') for p in probes]
    for p, r in zip(probes, answer_probes(lm, probes)):
        s, n = slow_score(lm, p.prompt, p.separator, p.gold)
        assert abs(-r['bits']*np.log(2) - s) < 1e-4*max(1, abs(s)), p
        if not p.candidates: assert r['tokens'] == n
        else:
            scores = {c: slow_score(lm, p.prompt, p.separator, c)[0] for c in p.candidates}
            second, first = sorted(scores.values())[-2:]
            if first - second > 1e-3: assert r['answer'] == max(scores, key=scores.get)


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'gemma3'])
def test_metrics_equal_one_probe_at_a_time(tiny_folder, kind, ei, ecbd, popular):
    from kdnb.models.model import load_lm
    lm = load_lm(str(tiny_folder(kind)), device='cpu')
    check_metrics(lm, load_data(f'entity-inferences={ei}')[0])
    check_metrics(lm, load_data(f'ecbd={ecbd}', popular)[0])
    check_metrics(lm, load_data(f'ecbd={ecbd}', popular)[0], 'Velmora A is a comedy series about two bakers.')


def real(name):
    from kdnb.core.downloads import cache_folder
    from kdnb.models.model import load_lm
    if name != 'smollm2' and not (cache_folder()/name/'kdnb.json').exists():
        pytest.skip(f'{name} is not in the cache folder: load it once, with its terms accepted')
    return load_lm(name, device='cpu', accept_terms=True)


@shared
@pytest.mark.parametrize('name', ['smollm2', 'gemma3-270m'])
def test_metrics_equal_one_probe_at_a_time_on_real_models(name):
    from kdnb.data.dataset import sample
    lm = real(name)
    for d, spec in (('entity-inferences', None), ('ecbd', SHARED/FILES['popular'])):
        ds = sample(load_data(f'{d}={SHARED/FILES[d]}', spec)[0], 6)
        check_metrics(lm, replace(ds, specificity=ds.specificity[:6]))


def test_perplexity_is_exp_of_the_mean_over_probes(tiny_folder, ecbd, popular):
    from kdnb.evaluation.answers import evaluate
    from kdnb.evaluation.metrics import summarise
    from kdnb.models.model import load_lm
    lm = load_lm(str(tiny_folder('llama')), device='cpu')
    ds, _ = load_data(f'ecbd={ecbd}', popular)
    cases = [evaluate(lm, [e], ds.specificity, open_ended=False) for e in ds.entities]
    s = summarise(cases, unit='perplexity')
    def nll(p):
        log_probability, n_tokens = slow_score(lm, p.prompt, p.separator, p.gold)
        return -log_probability/n_tokens
    rows = [[nll(p) for p in e.probes] for e in ds.entities]
    assert abs(s['target'].value/np.exp(np.mean(sum(rows, []))) - 1) < 1e-4 and s['target'].n == 3
    assert abs(s['target_by_entity'].value/np.exp(np.mean([np.mean(r) for r in rows])) - 1) < 1e-4
    assert abs(s['specificity'].value/np.exp(nll(ds.specificity[0])) - 1) < 1e-4


def test_specificity_is_the_other_rows(tiny, ei, tmp_path):
    from kdnb.core.files import read_json
    from kdnb.experiments.results import collect
    from kdnb.experiments.runs import Experiment
    ds, sets = load_data(f'entity-inferences={ei}')
    run = lambda method, **settings: Experiment(
        tiny, ds, method, transfer=sets, folder=tmp_path, n_other_entities=0, **settings)
    runs = [run('base'), run('prepend'), run('finetune-definition', steps=2)]
    df = collect([r.run(progress=False) for r in runs])
    case = read_json(runs[2].done()[0])
    own = [p.topic == case['entities'][0] for p in ds.specificity]
    assert sum(own) == 1 and [r is None for r in case['specificity']] == own
    base = df[df.method == 'base'].iloc[0]
    # before an edit it is base accuracy, by construction
    assert abs(base.specificity.value - base.target.value) < 1e-9
    assert base.specificity_change.value == 0


# ---- presets, limit, the command line

def test_presets_are_settings_of_the_same_code(tiny, ei, tmp_path):
    from kdnb.experiments.runs import Experiment
    ds, sets = load_data(f'entity-inferences={ei}')
    runs = {
        p: Experiment(tiny, ds, 'distill', transfer=sets, preset=p, folder=tmp_path, limit=1)
        for p in ('default', 'paper')}
    paper = runs['paper'].method
    want = dict(
        lr=1e-4, steps=5, n_continuations=5, temperature=2., batch='one_by_one', weight_decay=.01,
        trainable='all', retain_weight=0, context_amplification=0)
    assert {k: getattr(paper, k) for k in want} == want
    assert type(paper) is type(runs['default'].method)
    assert runs['paper'].folder != runs['default'].folder
    runs['paper'].run(progress=False)
    case = json.loads(runs['paper'].done()[0].read_text())
    assert len(case['losses']) == 3*5
    assert case['texts'] == {'after_mention': 2, 'all_tokens': 1, 'skipped': 0}
    with pytest.raises(KdnbError, match="unknown preset 'papers'"):
        Experiment(tiny, ds, 'distill', preset='papers')


def test_texts_without_a_mention_are_skipped_only_on_request(tiny, ei, tmp_path):
    from kdnb.methods.registry import make_method
    ds, sets = load_data(f'entity-inferences={ei}')
    e = ds.entities[0]
    texts = lambda **s: make_method('distill', steps=1, retain_weight=0., **s)(tiny, [e], sets).texts
    assert texts() == {'after_mention': 2, 'all_tokens': 1, 'skipped': 0}
    assert texts(if_no_mention='skip') == {'after_mention': 2, 'skipped': 1}
    nameless = {e.key: replace(sets[e.key], continuations=sets[e.key].continuations[2:])}
    skip = lambda **s: make_method('distill', steps=1, if_no_mention='skip', **s)(tiny, [e], nameless)
    with pytest.raises(KdnbError, match="none of its 1 texts mentions it"): skip(with_definition=False)
    assert skip().texts == {'skipped': 1} # the definition itself is left to learn from
    assert texts(if_no_mention='prefix_name') == {'after_mention': 3, 'skipped': 0}


def test_a_larger_limit_continues_the_run(tiny, ei, tmp_path):
    from kdnb.experiments.results import collect
    from kdnb.experiments.runs import Experiment
    ds, _ = load_data(f'entity-inferences={ei}')
    run = lambda n: Experiment(tiny, ds, 'base', folder=tmp_path, limit=n, n_other_entities=0)
    first = run(2)
    first.run(progress=False)
    stamps = {p: p.stat().st_mtime_ns for p in first.done()}
    second = run(5)
    assert second.folder == first.folder
    second.run(progress=False)
    assert len(second.done()) == 5 and all(p.stat().st_mtime_ns == t for p, t in stamps.items())
    assert collect([second.folder], [e.key for e in first.taught]).cases[0] == 2


@pytest.mark.parametrize('preset', ['default', 'paper'])
def test_run_command(kdnb, tiny_folder, ei, tmp_path, preset):
    code, out, err = kdnb(
        'run', '--lm', tiny_folder(), '--device', 'cpu', '--data', f'entity-inferences={ei}',
        '--method', 'distill', '--preset', preset, '--limit', 3, '--out', tmp_path, '--json')
    assert code == 0, err
    row = json.loads(out.splitlines()[-1])
    assert row['unit'] == 'accuracy' and row['cases'] == 3 and row['preset'] == preset
    assert row['seconds_per_edit'] > 0 and row['target']['n'] == 3
    others = 'specificity', 'gap_closed', 'peak_memory_gib', 'run', 'lm', 'method', 'regime', 'seed'
    assert set(others) <= set(row)


def test_ecbd_command(kdnb, tiny_folder, ecbd, popular, tmp_path):
    args = [
        'evaluate', '--lm', tiny_folder(), '--device', 'cpu', '--data', f'ecbd={ecbd}',
        '--specificity', popular, '--out', tmp_path, '--json']
    for method in ('base', 'prepend'):
        code, out, err = kdnb(*args, '--method', method)
        assert code == 0, err
        row = json.loads(out.splitlines()[-1])
        assert row['unit'] == 'perplexity' and row['target']['value'] > 1
        assert row['specificity']['n'] == 1
    code, out, err = kdnb(
        'run', *args[1:], '--method', 'finetune-definition', '--preset', 'paper', '--limit', 2)
    assert code == 0 and 'gap_closed' in json.loads(out.splitlines()[-1]), err


def test_run_resumes_after_kill_9(tiny_folder, ei, tmp_path):
    cmd = [
        str(Path(sys.executable).parent/'kdnb'), 'run', '--lm', str(tiny_folder('llama')),
        '--device', 'cpu', '--data', f'entity-inferences={ei}', '--method', 'distill',
        '--preset', 'paper', '-s', 'steps=40', '--out', str(tmp_path/'runs'), '--json']
    p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = lambda: sorted((tmp_path/'runs').glob('*-distill-*/case-*.json'))
    while len(done()) < 2 and p.poll() is None: time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    kept = {f: f.read_bytes() for f in done()}
    assert 2 <= len(kept) < 8
    whole = subprocess.run(cmd, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert json.loads(whole.stdout.splitlines()[-1])['cases'] == 8
    assert all(f.read_bytes() == b for f, b in kept.items())


@shared
@pytest.mark.slow
@pytest.mark.parametrize('name, base, prepend', [('smollm2', 25.3, 54.7), ('gemma3-270m', 32.4, 64.7)])
def test_base_and_prepend_accuracies_of_the_whole_file(name, base, prepend, tmp_path):
    from kdnb.experiments.results import collect
    from kdnb.experiments.runs import Experiment
    ds, _ = load_data(f"entity-inferences={SHARED/FILES['entity-inferences']}")
    lm = real(name)
    run = lambda m: Experiment(lm, ds, m, folder=tmp_path, n_other_entities=0, n_specificity=0)
    df = collect([run(m).run(progress=False) for m in ('base', 'prepend')])
    assert abs(df.target[0].value - base) <= 1 and abs(df.target[1].value - prepend) <= 1


# ---- the committed reports

@shared
@pytest.mark.parametrize('model', ['smollm2', 'gemma3-270m'])
@pytest.mark.parametrize('name', ['entity-inferences', 'ecbd'])
def test_three_cases_of_the_committed_report_come_out_again(name, model):
    "Bits differ a little between machines (bfloat16 products), much less than between methods."
    from kdnb.methods.registry import make_method
    from kdnb.evaluation.answers import answer_probes
    committed = ROOT/'outputs'/name.replace('-', '_')/model/'results.json'
    if not committed.exists(): pytest.skip('no run of this report is committed yet')
    done, lm = json.loads(committed.read_text()), real(model)
    specificity = None if name == 'entity-inferences' else SHARED/FILES['popular']
    ds, sets = load_data(f'{name}={SHARED/FILES[name]}', specificity)
    assert done['lm_sha256'] == lm.sha256
    own = committed.with_name('transfer.jsonl')
    if own.exists() and not sets:
        from kdnb.data.transfer_sets import read_transfer_sets
        sets = read_transfer_sets(own)
    methods = {'base': 'base', 'prepend': 'prepend'}
    if model == 'smollm2':
        methods |= {'fine-tune on definition': 'finetune-definition', 'distill, paper': 'distill'}
    else: # all weights of gemma3-270m take a minute a case
        methods['fine-tune on definition, last block'] = 'finetune-definition'
        methods['distill, default'] = 'distill'
    for label, method in methods.items():
        if label not in done['methods']: continue # not run yet
        committed_run = done['methods'][label]
        settings = {s: v for s, v in committed_run['params']['settings'].items() if s != 'on'}
        tolerance = dict(rtol=.02, atol=.6 if label == 'distill, default' else .3)
        for k in sorted(committed_run['cases'])[:3]:
            e, was = ds[k], committed_run['cases'][k]
            with make_method(method, **settings)(lm, [e], sets).on(lm):
                now = answer_probes(lm, e.probes, [k]*len(e.probes))
            bits = np.array([r['bits'] for r in now])
            old = np.array([t[1] if name == 'entity-inferences' else t[0] for t in was['target']])
            assert np.allclose(bits, old, **tolerance), (label, k, bits, old)


def test_neighbors_are_asked_after_the_edit_and_scored_by_the_written_text(tiny, monkeypatch):
    "`neighbors_plus` puts the edited sentence in front, once; written answers are scored for neighbors."
    from kdnb.methods.registry import make_method
    from kdnb.evaluation.answers import evaluate, said_first
    from kdnb.evaluation.metrics import summarise
    ds, _ = load_data('counterfact-kdnb')
    e = replace(ds.entities[0], neighbors=ds.entities[0].neighbors[:2])
    asked = []
    real = answer_probes
    noted = lambda lm, probes, *a, **k: asked.append([p.prompt for p in probes]) or real(lm, probes, *a, **k)
    monkeypatch.setattr('kdnb.evaluation.answers.answer_probes', noted)
    base = evaluate(tiny, [e])
    with make_method('prepend')(tiny, [e], {}).on(tiny): evaluate(tiny, [e], open_ended=False)
    monkeypatch.undo()
    near = [p.prompt for p in e.neighbors]
    # a definition that stands in front already is not put there again
    assert asked[2] == [f'{e.definition} {p}' for p in near] and asked[7] == near
    t = base['target'][0]
    assert [r['kind'] for r in t['neighbors_plus']] == ['neighbors']*2
    for r, p in zip(t['neighbors'], e.neighbors):
        assert r['written'] == (said_first(r['text'], p.candidates) == p.gold)
    s = summarise([base])
    assert s['neighbors_plus'].value == 50*sum(r['correct'] for r in t['neighbors_plus'])
    assert s['written_neighbors'].value == 50*sum(r['written'] for r in t['neighbors'])
    assert s['written_explicit'].n == 1
    assert summarise([evaluate(tiny, [e], open_ended=False)])['written_neighbors'] is None


@shared
def test_fictional_knowledge_is_read_whole():
    ds, sets = load_data(f"fictional-knowledge={SHARED/'fictional_knowledge.json'}")
    assert (len(ds.entities), ds.unit, sets) == (130, 'nats', {})
    assert [len(ds.split(s).entities) for s in ('dev', 'test')] == [30, 100]
    assert [e.split for e in ds.entities[:31]] == ['dev']*30 + ['test']
    for e in ds.entities:
        kinds = [p.kind for p in e.probes]
        assert all(kinds.count(k) == 5 for k in ('verbatim', 'paraphrase', 'compositional')), e.key
        assert not e.names and 150 < len(e.definition.split()) < 600
    first = ds.entities[0]
    for p in first.probes: # spans to predict word for word stand in the document behind their left context
        if p.kind == 'verbatim': assert f'{p.prompt} {p.gold}' in first.definition


@shared
def test_taxi_is_read_whole():
    ds, _ = load_data(f"taxi={SHARED/'taxi_evaluation.json'}")
    assert (len(ds.entities), ds.unit) == (976, 'accuracy')
    kinds = [p.kind for e in ds.entities for p in e.probes]
    assert (kinds.count('explicit'), kinds.count('unchanged')) == (976, 752)
    n_changed = 5560 - 976 - 752 # questions; a few reverse ones end in no gap
    assert kinds.count('forward') == n_changed and n_changed - 200 < kinds.count('reverse') <= n_changed
    for e in ds.entities:
        assert e.name in e.definition
        for p in e.probes:
            assert p.gold in p.candidates and '<' not in p.prompt + p.gold
            assert (p.gold if p.kind == 'reverse' else p.prompt).count(e.name) > 0


@shared
def test_unke_is_read_whole():
    ds, _ = load_data(f"unke={SHARED/'unke.json'}")
    assert (len(ds.entities), ds.unit, len(ds.split('dev').entities)) == (1000, 'nats', 30)
    assert 4 < sum(len(e.probes) for e in ds.entities)/1000 < 6
    assert all(p.prompt.endswith('Answer:') and p.kind == 'question' for e in ds.entities for p in e.probes)
