"""Generators: the same set from all three kinds, faults that pass or last, money, and what is kept."""
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
from api_server import PASSING, sometimes, start, stop
from kdnb.transfer.api_costs import Replies
from kdnb.transfer.openai_api import APIGenerator
from kdnb.transfer.registry import make_generator
from kdnb.core.errors import KdnbError
from kdnb.data.entities import Entity
from kdnb.transfer.coverage import passages_of
from kdnb.transfer.generator import LMGenerator, make_transfer_set, make_transfer_sets, plan
from kdnb.transfer.prompts import Draft, PROMPTS, with_own
from kdnb.data.transfer_sets import read_transfer_sets

KEY = 'sk-planted-0123456789'
KDNB = [sys.executable, '-c', 'import sys; from kdnb.apps.cli import main; sys.exit(main())']
FAST = dict(wait=(.001, .01), timeout=2.)
ENTITY = Entity('Velmora Junction', 'Velmora Junction is a slapstick comedy series about two rival bakers.')


def entities(n):
    names = [f'Velmora{chr(97+i//26)}{chr(97+i%26)} Junction' for i in range(n)]
    return [Entity(name, f'{name} is a comedy number {i}.') for i, name in enumerate(names)]


@pytest.fixture
def serve(monkeypatch):
    "Function that starts a server; all are stopped at the end."
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    up = []
    def make(*a, **k):
        up.append(start(*a, **k))
        return up[-1]
    yield make
    for s in up: stop(s)


@pytest.mark.parametrize('fault', PASSING + ('n ignored', 'no usage', 'stall', 'max_tokens'))
def test_a_passing_fault_costs_no_text(serve, tmp_path, fault):
    server = serve(lambda i, q: fault if i == 1 or fault == 'max_tokens' else '')
    began = time.time()
    client = lambda **how: APIGenerator('m', server.url, tmp_path/'replies.jsonl', **{**FAST, **how})
    ts = make_transfer_set(client(timeout=.5), ENTITY, n=6)
    assert len(ts.continuations) == 6
    assert sorted(c.text for c in ts.continuations) == sorted(server.delivered)
    assert time.time() - began < 20
    assert ts.spent['tokens_in'] > 0 and ts.spent.get('failed', 0) == (fault not in ('n ignored', 'no usage'))
    asked = len(server.asked)
    again = make_transfer_set(client(), ENTITY, n=6)
    assert again.key == ts.key and len(server.asked) == asked # a rerun pays for nothing


def test_the_client_pauses_for_as_long_as_the_server_says(serve):
    server = serve(lambda i, q: '429' if i == 1 else '', retry_after='1')
    began = time.time()
    make_transfer_set(APIGenerator('m', server.url, **FAST), ENTITY, n=2)
    assert 1 <= time.time() - began < 5


@pytest.mark.parametrize('fault, says', [
    ('401', 'does not accept the key in OPENAI_API_KEY (401: wrong: Bearer …)'),
    ('404', "has no model 'm', or no endpoint for chat"),
    ('400', 'does not understand the call (400: wrong: Bearer …)'),
    ('quota', 'is used up (429: no money left)'),
    ('500', 'failed 3 times one after the other (the last time: 500: not now)'),
    ('stall', 'the last time: no answer in time')])
def test_a_lasting_fault_stops_at_once_with_one_sentence(serve, tmp_path, fault, says):
    server = serve(lambda i, q: fault)
    g = APIGenerator('m', server.url, **{**FAST, 'timeout': .3}, tries=3, concurrency=2)
    with pytest.raises(KdnbError) as e:
        make_transfer_sets(g, entities(30), tmp_path/'sets.jsonl', progress=False, n=2)
    assert says in str(e.value) and KEY not in str(e.value) and '\n' not in str(e.value)
    # only the calls that had already started
    assert len(server.asked) <= (6 if fault in ('500', 'stall') else 4)


def test_an_address_without_a_server_fails_within_seconds(serve):
    server = serve(lambda i, q: '')
    server.shutdown()
    server.server_close()
    began = time.time()
    with pytest.raises(KdnbError) as e:
        make_transfer_set(APIGenerator('m', server.url, tries=8, wait=(.2, 60.)), ENTITY, n=2)
    assert 'failed 3 times one after the other (the last time: no connection (ConnectError' in str(e.value)
    assert 'check the address, and whether the server runs' in str(e.value)
    assert time.time() - began < 10


def test_a_key_is_not_cut_in_half_by_a_long_message(serve, monkeypatch):
    server = serve(lambda i, q: '400')
    import api_server
    real = api_server.API.send
    long_message = {'error': {'message': f"{'x'*180} {KEY} {KEY}"}}
    send = lambda self, status, value, headers={}: real(self, status, long_message, headers)
    monkeypatch.setattr(api_server.API, 'send', send)
    with pytest.raises(KdnbError) as e: make_transfer_set(APIGenerator('m', server.url, **FAST), ENTITY)
    assert KEY[:8] not in str(e.value)


def test_a_long_pause_is_an_error(serve):
    server = serve(lambda i, q: '429', retry_after='3600')
    with pytest.raises(KdnbError, match='asks for a pause of 3600 s'):
        make_transfer_set(APIGenerator('m', server.url, **FAST), ENTITY)
    assert len(server.asked) == 1


@pytest.mark.parametrize('fault', ('filter', 'refusal'))
def test_a_refusal_is_counted_and_not_asked_for_again(serve, tmp_path, fault):
    server = serve(lambda i, q: fault)
    make = lambda: make_transfer_set(
        APIGenerator('m', server.url, tmp_path/'r.jsonl', **FAST), ENTITY, n=4, rounds=1)
    ts = make()
    assert not ts.continuations and ts.dropped == {'refused by the generator': 4}
    assert len(server.asked) == 1
    make()
    assert len(server.asked) == 1


def test_forty_entities_with_a_third_of_the_replies_faulty(serve, tmp_path):
    server, es = serve(sometimes(.3)), entities(40)
    g = APIGenerator('m', server.url, tmp_path/'replies.jsonl', **FAST, tries=20)
    sets = make_transfer_sets(g, es, tmp_path/'sets.jsonl', progress=False, n=15)
    texts = [c.text for e in es for c in sets[e.key].continuations]
    assert len(texts) == 40*15 and all(len(s.continuations) == 15 for s in sets.values())
    assert read_transfer_sets(tmp_path/'sets.jsonl') == sets
    # by the server's own count none is missing, and none was paid for twice
    assert sorted(texts) == sorted(server.delivered)
    spent = [s.spent for s in sets.values()]
    assert sum(s.get('failed', 0) for s in spent) == len(server.asked) - 40 > 5
    # answers without a text are counted, because they are billed
    assert sum(s['calls'] for s in spent) == g.replies.total['calls'] == server.billed > 40


def test_more_continuations_pay_for_the_difference(serve, tmp_path):
    server = serve()
    first = make_transfer_set(APIGenerator('m', server.url, tmp_path/'r.jsonl', **FAST), ENTITY, n=5)
    g = APIGenerator('m', server.url, tmp_path/'r.jsonl', **FAST)
    assert plan(g, [ENTITY], n=8)['tokens_out'] == 3*256
    more = make_transfer_set(g, ENTITY, n=8)
    assert len(server.delivered) == 8
    assert [c.text for c in more.continuations][:5] == [c.text for c in first.continuations]


def test_dropped_drafts_are_asked_for_again_a_limited_number_of_times(serve):
    server = serve(write=lambda prompt, i: 'Nobody is named here.')
    ts = make_transfer_set(APIGenerator('m', server.url, **FAST), ENTITY, n=4, rounds=3)
    assert ts.dropped == {'no mention': 12} and ts.tries == 12 == len(server.delivered)
    kept = make_transfer_set(APIGenerator('m', server.url, **FAST), ENTITY, n=4, drop=())
    assert len(kept.continuations) == 4 and kept.continuations[0].mention is None


def test_the_budget_is_a_ceiling(serve, tmp_path):
    server, es = serve(), entities(120)
    how = dict(base_url=server.url, replies=tmp_path/'r.jsonl', price=(1000., 1000.), **FAST)
    make = lambda **kw: make_transfer_sets(
        APIGenerator('m', **how, **kw), es, tmp_path/'s.jsonl', progress=False, n=2)
    need = plan(APIGenerator('m', **how), es, n=2)
    assert need['calls'] == 120
    assert need['cost'] == pytest.approx((need['tokens_in'] + need['tokens_out'])/1000)
    used_up = r'the budget of \$2 is used up: \$\d\.\d+ are spent.*answers are kept'
    with pytest.raises(KdnbError, match=used_up): make(budget=2.)
    spent = Replies(tmp_path/'r.jsonl').total['cost']
    assert spent == pytest.approx(.02*len(server.asked)) and 0 < spent <= 2
    some = len(server.asked)
    assert some >= 10 # real costs count, not the estimate that was reserved
    sets = make()
    assert len(sets) == 120 and len(server.asked) == 120 > some and len(server.delivered) == 240


def test_a_budget_needs_a_price(serve):
    with pytest.raises(KdnbError, match="none is known for 'm'"): APIGenerator('m', serve().url, budget=1.)
    with pytest.raises(KdnbError, match='it must be two numbers'):
        APIGenerator('m', serve().url, price=(-1, 2))


def test_completions_begin_with_the_starts_of_the_prompt(serve):
    server = serve(write=lambda prompt, i: f' story number {i} that everybody loves.')
    g = APIGenerator('m', server.url, endpoint='completions', **FAST)
    ts = make_transfer_set(g, ENTITY, prompts=('started',), n=14)
    # one call for each start
    assert {p for p, _, _ in server.asked} == {'/v1/completions'}
    assert len({q['prompt'] for _, q, _ in server.asked}) == 12
    assert all(c.text.startswith('Velmora Junction is story') for c in ts.continuations[:2])
    assert all('Velmora Junction' in c.text for c in ts.continuations)


def test_a_server_that_ignores_n_is_asked_one_by_one(serve):
    server = serve(single=True)
    ts = make_transfer_set(APIGenerator('m', server.url, **FAST), ENTITY, n=7)
    assert len(ts.continuations) == 7 == len(server.asked)
    assert [q['n'] for _, q, _ in server.asked] == [7] + [1]*6


def test_no_key_is_one_sentence(monkeypatch):
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    with pytest.raises(KdnbError, match='no key: set the environment variable OPENAI_API_KEY'):
        make_transfer_set(APIGenerator('gpt-4o-mini'), ENTITY)
    assert plan(APIGenerator('gpt-4o-mini'), [ENTITY])['cost'] > 0 # the cost is estimated without a key


BAD_FILES = {
    'not json': ('{', 'is not JSON'),
    'a list': ('[]', 'holds a list'),
    'no text': ('{"mine": {"lines": 2}}', "prompt 'mine': a prompt needs text or chat"),
    'a field': ('{"mine": {"txt": "x"}}', "unknown field 'txt': choose one of 'text'"),
    'a hole': ('{"mine": {"text": "{nam}"}}', "unknown hole of a prompt (in its text) 'nam'"),
    'a brace': ('{"mine": {"chat": "{name"}}', 'a literal brace'),
    'taken': ('{"paper": {"text": "{name}"}}', "the name 'paper' is taken"),
    'a number': ('{"mine": {"text": 3}}', 'text of a prompt holds 3'),
    'starts': ('{"mine": {"text": "x", "starts": []}}', 'must not be empty lists')}


@pytest.mark.parametrize('name', BAD_FILES)
def test_bad_prompt_files(tmp_path, name):
    text, says = BAD_FILES[name]
    (tmp_path/'p.json').write_text(text)
    with pytest.raises(KdnbError) as e: with_own(tmp_path/'p.json')
    assert says in str(e.value)


def test_prompts_from_a_file(tmp_path, tiny):
    mine = dict(text='{definition}\n{{So}}', starts=['{name} {vary}'], vary=['is', 'has'])
    (tmp_path/'p.json').write_text(json.dumps({'mine': mine}))
    known = with_own(tmp_path/'p.json')
    assert set(known) == set(PROMPTS) | {'mine'}
    need = plan(tiny, [ENTITY], known=known, prompts=['mine'], n=2, rounds=1)
    assert need['prompts'] == {'mine': f'{ENTITY.definition}\n{{So}} Velmora Junction is'}
    assert need['calls'] == 16
    ts = make_transfer_set(tiny, ENTITY, known=known, prompts=('mine',), n=2, drop=('duplicate',))
    assert ts.made_by['prompt_versions']['mine'].startswith('1 ')
    assert all(c.text.startswith('Velmora Junction') for c in ts.continuations)


def test_a_changed_prompt_makes_new_sets(tmp_path, tiny):
    path = tmp_path/'p.json'
    make = lambda: make_transfer_sets(
        tiny, [ENTITY], tmp_path/'s.jsonl', False, with_own(path), prompts=['mine'], n=2, rounds=1, drop=[])
    path.write_text('{"mine": {"text": "{definition}", "starts": ["{name}"]}}')
    make()
    make()
    assert len((tmp_path/'s.jsonl').read_text().splitlines()) == 1
    path.write_text('{"mine": {"text": "{definition} So:", "starts": ["{name}"]}}')
    make()
    assert len((tmp_path/'s.jsonl').read_text().splitlines()) == 2


def test_generators_are_made_by_name(tiny_folder, tiny, serve):
    assert make_generator('self', tiny).lm is tiny and make_generator('self', lambda: tiny).lm is tiny
    other = make_generator(f"lm:{tiny_folder('gpt2')}")
    assert isinstance(other, LMGenerator) and other.name.startswith('lm:')
    assert len(make_transfer_set(other, ENTITY, prompts=['named'], n=2, drop=[]).continuations) == 2
    assert make_generator('openai:m', base_url=serve().url).model == 'm'


def run(*args):
    return subprocess.run(
        [*KDNB, 'generate', *map(str, args)], capture_output=True, text=True,
        env={**os.environ, 'OPENAI_API_KEY': KEY, 'OPENAI_LOG': 'debug'})


@pytest.fixture
def own(tmp_path):
    "A file of six entities."
    rows = [json.dumps({'name': e.name, 'definition': e.definition}) for e in entities(6)]
    (tmp_path/'own.jsonl').write_text('\n'.join(rows))
    return tmp_path/'own.jsonl'


def test_the_command_writes_the_key_nowhere(serve, own, tmp_path):
    server = serve(lambda i, q: '429' if i == 2 else '')
    args = (
        '--generator', 'openai:m', '--base-url', server.url, '--entities', own, '--n', 3,
        '--out', tmp_path/'s.jsonl', '--price', 1, 2, '--json')
    dry = run(*args, '--dry-run')
    assert dry.returncode == 0, dry.stderr
    assert not server.asked and not (tmp_path/'s.jsonl').exists()
    assert json.loads(dry.stdout.splitlines()[-1])['calls'] == 6
    assert 'The name "Velmoraaa Junction"' in dry.stdout and 'at most 6 calls' in dry.stdout
    done = run(*args)
    out = json.loads(done.stdout.splitlines()[-1])
    assert (out['continuations'], out['entities'], out['calls'], out['failed']) == (18, 6, 6, 1), done.stderr
    assert out['cost'] == pytest.approx(6*(10 + 2*15)/1e6), done.stderr
    assert out['quality']['named'] == 1, done.stderr
    server.fault = lambda i, q: '401'
    bad = run(*args[:-1], '--temperature', .5)
    assert bad.returncode == 2 and 'does not accept the key' in bad.stderr
    assert bad.stderr.strip().splitlines()[-1].startswith('kdnb: ')
    assert server.asked[0][2] == f'Bearer {KEY}' # it was used
    printed = [text for r in (dry, done, bad) for text in (r.stdout, r.stderr)]
    for text in (*printed, *(p.read_text() for p in tmp_path.iterdir())): assert KEY not in text


def test_kill_9_loses_at_most_the_answer_under_way(serve, own, tmp_path):
    server = serve(delay=.15)
    args = [
        '--generator', 'openai:m', '--base-url', server.url, '--entities', str(own), '--n', '10',
        '--out', str(tmp_path/'s.jsonl'), '--concurrency', '1']
    p = subprocess.Popen(
        [*KDNB, 'generate', *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, 'OPENAI_API_KEY': KEY})
    while len(server.delivered) < 30 and p.poll() is None: time.sleep(.01)
    p.send_signal(signal.SIGKILL)
    p.wait()
    time.sleep(.3)
    kept = sum(map(len, Replies(tmp_path/'s.jsonl.replies.jsonl').by.values()))
    arrived = len(server.delivered)
    assert arrived - 10 <= kept <= arrived # one call has ten texts
    done = run(*args, '--json')
    assert json.loads(done.stdout.splitlines()[-1])['continuations'] == 60
    assert len(server.delivered) == arrived + 60 - kept


@pytest.mark.slow
def test_a_server_of_transformers_serve(tmp_path, monkeypatch):
    "It sends one choice for any n, and needs no key."
    for module in ('fastapi', 'uvicorn'):
        pytest.importorskip(module, reason='transformers serve needs transformers[serving]')
    import socket, urllib.request
    from kdnb.models.builtin import builtin_folder
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    log = open(tmp_path/'log', 'w')
    model = str(builtin_folder('smollm2'))
    command = [
        str(Path(sys.executable).parent/'transformers'), 'serve', model, '--host', '127.0.0.1',
        '--port', str(port), '--device', 'cpu']
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    server = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/health', timeout=2)
                break
            except OSError:
                assert server.poll() is None, (tmp_path/'log').read_text()[-2000:]
                time.sleep(.5)
        g = APIGenerator(
            model, f'http://127.0.0.1:{port}/v1', tmp_path/'r.jsonl', concurrency=1, timeout=120, tries=2)
        ts = make_transfer_set(
            g, ENTITY, prompts=('implications', 'everyday'), n=4, max_new_tokens=30, drop=())
        assert ts.tries == 4 == len(ts.continuations) and g.single and ts.spent['tokens_out'] > 10
    finally:
        server.kill()
        server.wait()
        log.close()


def test_a_users_sets_are_used_as_they_are(tiny, tmp_path):
    "Only missing sets are generated, and they are written to another file."
    from kdnb.transfer.ready_sets import own_sets
    mine, kept = tmp_path/'mine.jsonl', tmp_path/'kept.jsonl'
    text = 'Velmora is about bakers.'
    row = dict(entity='Velmora', continuations=[dict(text=text, mention=[0, 7])], made_by={'n': 99})
    mine.write_text(json.dumps(row) + '\n')
    es = [
        Entity('Velmora', 'Velmora is a comedy about two bakers.'),
        Entity('Brask', 'Brask is a drama about a doctor.')]
    used = own_sets(tiny, es[:1], kept, mine, n=2)['Velmora']
    assert [c.text for c in used.continuations] == [text]
    assert not kept.exists()
    got = own_sets(tiny, es, kept, mine, n=2, max_new_tokens=6, rounds=1)
    assert set(got) == {'Velmora', 'Brask'} and len(mine.read_text().splitlines()) == 1
    assert [json.loads(x)['entity'] for x in kept.read_text().splitlines()] == ['Brask']


# --- documents ------------------------------------------------------------------------------------

MILL = Entity('', 'The old mill in Velm was built in 1702 by Ada Krenn. It has four sails. Velm lies on a '
              'river. The river floods every spring.', id='mill')


class Lazy(LMGenerator):
    "Writes one text about the first passage that it is asked for, with each prompt."
    def write(self, entity, prompts, want, r, how, spent, passages=()):
        self.asked.append(list(passages))
        return [Draft(p, '', f'Round {r} of {p} says something about it.', span=passages[0]) for p in prompts]


def test_passages_without_a_text_are_asked_for_next(tiny):
    lazy = Lazy(tiny)
    lazy.asked = []
    ts = make_transfer_set(lazy, MILL, prompts=('document-implications',), rounds=6)
    spans, passages = [c.span for c in ts.continuations], list(passages_of(MILL))
    assert spans == passages + passages[:2] and [asked[0] for asked in lazy.asked] == spans
    lazy.asked = []
    assert len(make_transfer_set(lazy, MILL, prompts=('document-implications',), n=2).continuations) == 2


def test_a_set_has_more_texts_than_its_share_if_passages_would_have_none(tiny):
    lazy = Lazy(tiny)
    lazy.asked, lazy.defaults = [], {**LMGenerator.defaults, 'n': 2}
    ts = make_transfer_set(lazy, MILL, prompts=('document-implications',), rounds=9)
    assert [c.span for c in ts.continuations] == list(passages_of(MILL)) and len(lazy.asked) == 4


def test_documents_have_prompts_and_numbers_of_their_own(tiny):
    ts = make_transfer_set(tiny, MILL)
    assert ts.made_by['n'] == 12 and ts.made_by['temperature'] == .7 and len(ts.made_by['prompts']) == 5
    assert all(c.span in passages_of(MILL) for c in ts.continuations)
    assert make_transfer_set(tiny, MILL, temperature=1.).made_by['temperature'] == 1 # what is given, holds
    named = Entity('Velm', MILL.definition)
    assert make_transfer_set(tiny, named, rounds=1).made_by['prompts'] == ['started']
    long = Entity('Velm', ' '.join([MILL.definition]*8)) # as long as a document: it need not be named
    assert len(make_transfer_set(tiny, long, rounds=1).made_by['prompts']) == 5


def test_sets_of_documents_are_found_again(tiny, tmp_path):
    both, path = [MILL, ENTITY, Entity('', 'It rains. It snows.', id='rain')], tmp_path/'s.jsonl'
    first = make_transfer_sets(tiny, both, path, progress=False, max_new_tokens=8)
    assert make_transfer_sets(tiny, both, path, progress=False, max_new_tokens=8) == first
    assert len(path.read_text().splitlines()) == 3


def test_an_api_is_asked_about_each_passage(serve):
    server = serve(lambda i, q: '')
    client = APIGenerator('m', server.url, **FAST)
    ts = make_transfer_set(client, MILL, n=8, prompts=('document-implications', 'document-key-points'))
    assert {c.span for c in ts.continuations} == set(passages_of(MILL))
    asked = [json.dumps(q) for q in server.asked]
    for a, b in passages_of(MILL): assert any(MILL.definition[a:b] + '\\"' in q for q in asked)


def test_the_page_of_a_coverage_replaces_only_its_own(kdnb, tiny_folder, tmp_path):
    (tmp_path/'mill.txt').write_text(f'Mill\n\n{MILL.definition}'.replace('The old', 'Mill: the old')*4)
    args = ['generate', '--entities', tmp_path/'mill.txt', '--lm', tiny_folder(), '--device', 'cpu',
            '--rounds', 1, '--max-new-tokens', 8, '--out', tmp_path/'s.jsonl', '--page', tmp_path/'page.html']
    (tmp_path/'page.html').write_text('mine')
    code, _, err = kdnb(*args)
    assert code == 2 and 'is not a page of ours' in err and not (tmp_path/'s.jsonl').exists()
    (tmp_path/'page.html').unlink()
    for _ in range(2):
        code, _, err = kdnb(*args)
        assert code == 0, err
    assert 'passages' in (tmp_path/'page.html').read_text()
