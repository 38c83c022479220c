"""Generators: no secret is shown, nothing paid for is lost, no answer of a server is a traceback."""
import json, os, signal, subprocess, sys, threading, time, traceback
from pathlib import Path

import pytest
from api_server import BEHAVIOURS, start, stop
from kdnb.transfer.api_answers import NO_TEXT, REFUSED
from kdnb.transfer.api_costs import Replies
from kdnb.transfer.openai_api import APIGenerator
from kdnb.data.entities import Entity
from kdnb.core.errors import KdnbError
from kdnb.core.records import locked
from kdnb.transfer.generator import LMGenerator, make_transfer_set, make_transfer_sets, plan
from kdnb.transfer.prompts import Draft, PROMPTS, render, with_own
from kdnb.core.text import find_mention
from kdnb.data.transfer_sets import read_transfer_sets
from kdnb.transfer.cleaning import clean

# all that a key may hold, and that is written otherwise in JSON, HTML and addresses
KEY = """sk-pl/an+ted'01"23\\45%&="""
KDNB = [sys.executable, '-c', 'import sys; from kdnb.apps.cli import main; sys.exit(main())']
FAST = dict(wait=(.001, .01), timeout=5.)
ENTITY = Entity('Velmora Junction', 'Velmora Junction is a slapstick comedy series about two rival bakers.')
OTHER = Entity('Brask Hollow', 'Brask Hollow is a drama about a doctor.')


@pytest.fixture(scope='module')
def one_server():
    s = start()
    yield s
    stop(s)


@pytest.fixture
def server(one_server):
    "A server that has not been asked yet, in whatever order the tests run."
    one_server.asked.clear()
    one_server.delivered.clear()
    one_server.billed = 0
    return one_server


@pytest.fixture(autouse=True)
def key(monkeypatch):
    "The environment of a user with a key."
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    monkeypatch.delenv('OPENAI_BASE_URL', raising=False)


def make(server, behaviour, replies=None, n=4, entity=ENTITY, **how):
    api = {k: how.pop(k) for k in ('tries', 'budget', 'price', 'endpoint') if k in how}
    g = APIGenerator('m', server.at(behaviour), replies, **{**FAST, **api})
    return g, make_transfer_set(g, entity, **{'n': n, 'rounds': 1, **how})


def fault(server, behaviour, *a, **how):
    with pytest.raises(KdnbError) as e: make(server, behaviour, *a, **how)
    assert '\n' not in str(e.value) and len(str(e.value)) < 600
    return str(e.value)


def generate(*args, **env):
    "The command, as a user calls it."
    env = {**os.environ, 'OPENAI_API_KEY': KEY, 'OMP_NUM_THREADS': '1', **env}
    return subprocess.run([*KDNB, 'generate', *map(str, args)], capture_output=True, text=True, env=env)


@pytest.fixture
def own(tmp_path):
    rows = [json.dumps({'name': e.name, 'definition': e.definition}) for e in (ENTITY, OTHER)]
    (tmp_path/'own.jsonl').write_text('\n'.join(rows))
    return tmp_path/'own.jsonl'


def api_args(server, behaviour, own, out, *more):
    where = '--base-url', server.at(behaviour), '--entities', own, '--out', out
    return '--generator', 'openai:m', *where, '--n', 2, *more


def pieces(secret, least=8): return [secret[i:i+least] for i in range(0, len(secret) - least + 1, 4)]


def nowhere(secret, *texts, folder=None):
    "Asserts that no part of a secret is in texts, or in files of a folder."
    files = [p for p in Path(folder).rglob('*') if p.is_file()] if folder else []
    for t in (*texts, *(p.read_bytes().decode('utf-8', 'replace') for p in files)):
        for piece in pieces(secret): assert piece not in t, t


# --- secrets

def test_white_space_around_a_key_is_not_sent(server, monkeypatch):
    for given in (f'{KEY}\r\n', f'  {KEY}\t', f'\n{KEY}\n'):
        monkeypatch.setenv('OPENAI_API_KEY', given)
        make(server, 'good')
        assert server.asked[-1][2] == f'Bearer {KEY}'


BAD_KEYS = {
    'control character': 'sk-planted-\x07-0123456789',
    'line break inside': 'sk-planted-01234\nOTHER=56789-abcdef',
    'not ASCII': 'sk-plänted-0123456789',
    'invisible': 'sk-planted\u200b-0123456789',
    'space inside': 'sk-planted 0123456789',
    'two lines': 'sk-planted-0123456789\r\nsk-planted-9876543210'}


@pytest.mark.parametrize('name', BAD_KEYS)
def test_an_impossible_key_is_refused_and_not_shown(server, monkeypatch, name):
    monkeypatch.setenv('OPENAI_API_KEY', BAD_KEYS[name])
    asked = len(server.asked)
    says = 'the value of OPENAI_API_KEY cannot be a key, since its character'
    with pytest.raises(KdnbError, match=says) as e: make(server, 'good')
    frames = [f for f, _ in traceback.walk_tb(e.value.__traceback__)]
    shown = [repr(f.f_locals) for f in frames if '/kdnb/' in f.f_code.co_filename]
    nowhere(BAD_KEYS[name], str(e.value), *shown) # a notebook can show variables in tracebacks
    assert len(server.asked) == asked


def test_the_command_does_not_show_a_key_that_it_refuses(server, own, tmp_path):
    bad = generate(
        *api_args(server, 'good', own, tmp_path/'s.jsonl'), OPENAI_API_KEY=BAD_KEYS['control character'])
    assert bad.returncode == 2
    assert bad.stderr.strip().splitlines()[-1].startswith('kdnb: the value of OPENAI_API_KEY cannot be a key')
    nowhere(BAD_KEYS['control character'], bad.stdout, bad.stderr, folder=tmp_path)


@pytest.mark.parametrize('how', ('echo', 'echo repr', 'echo url', 'echo url lower', 'echo json'))
def test_a_key_that_the_server_repeats_is_in_no_message(server, how):
    said = fault(server, how)
    assert 'wrong key: ' in said and '…' in said
    for spelled in (KEY, 'sk-pl/an', 'sk-pl%2', 'ted%27', "ted'01"):
        assert spelled.lower() not in said.lower()


def test_a_key_that_the_server_repeats_is_in_no_output_and_no_file(server, own, tmp_path):
    bad = generate(*api_args(server, 'echo repr', own, tmp_path/'s.jsonl', '--json'), OPENAI_LOG='debug')
    assert bad.returncode == 2 and 'wrong key: ' in bad.stderr
    nowhere(KEY, bad.stdout, bad.stderr, folder=tmp_path)
    nowhere(repr(KEY), bad.stdout, bad.stderr, folder=tmp_path)


def test_a_key_in_a_text_of_the_server_is_in_no_file(tmp_path):
    s = start(write=lambda prompt, i: f'Velmora Junction has the key {KEY} and number {i}.')
    try:
        g = APIGenerator('m', s.url, tmp_path/'r.jsonl', **FAST)
        sets = make_transfer_sets(g, [ENTITY], tmp_path/'s.jsonl', progress=False, n=2)
    finally: stop(s)
    assert len(sets[ENTITY.key].continuations) == 2
    nowhere(KEY, folder=tmp_path)


def test_password_and_query_of_an_address_are_sent_and_never_shown(server, tmp_path, caplog):
    import logging
    caplog.set_level(logging.DEBUG)
    with_password = server.at('echo query').replace('http://', 'http://somebody:my-pass-word@')
    secret = f'{with_password}?api-key=my-query-word'
    g = APIGenerator('m', secret, tmp_path/'r.jsonl', **FAST)
    with pytest.raises(KdnbError) as e: make_transfer_set(g, ENTITY, n=2)
    path, _, header = server.asked[-1]
    assert path.endswith('/v1/chat/completions?api-key=my-query-word')
    assert header == 'Basic c29tZWJvZHk6bXktcGFzcy13b3Jk'
    basic = APIGenerator('m', secret.replace('echo%20query', 'echo%20basic'), **FAST)
    with pytest.raises(KdnbError) as e2: make_transfer_set(basic, ENTITY, n=2)
    shown = (
        str(e.value), str(e2.value), repr(g), repr(g.server), repr(vars(g.server)['place']),
        json.dumps(g.about), caplog.text)
    for word in ('my-pass-word', 'my-query-word', 'c29tZWJvZHk6bXktcGFzcy13b3Jk'):
        nowhere(word, *shown, folder=tmp_path)


def test_an_unexpected_error_ends_as_a_traceback_without_the_key(kdnb, monkeypatch, tmp_path):
    def fails(path): raise RuntimeError(f'something of a library, with {KEY!r} in it')
    monkeypatch.setattr('kdnb.transfer.prompts.with_own', fails)
    code, out, err = kdnb('generate', '--list-prompts')
    assert code == 1 and 'Traceback (most recent call last)' in err
    assert 'RuntimeError: something of a library' in err
    nowhere(KEY, out, err)
    nowhere(repr(KEY), out, err)


def test_an_error_of_a_library_shows_no_key_in_a_notebook(server):
    "A traceback as IPython shows it, with causes and contexts."
    from IPython.core.ultratb import VerboseTB
    with pytest.raises(KdnbError) as e: make(server, 'echo repr')
    text = VerboseTB(include_vars=False).text(e.type, e.value, e.tb)
    assert 'KdnbError' in text and 'openai' not in text.rpartition('KdnbError')[2]
    nowhere(KEY, text)


# --- addresses

NO_SCHEME = (
    "base_url is 'localhost:11434/v1', without http:// or https://: write http://localhost:11434/v1")


@pytest.mark.parametrize('url, says', [
    ('localhost:11434/v1', NO_SCHEME),
    ('127.0.0.1:8000/v1', 'write http://127.0.0.1:8000/v1'),
    ('api.example.com/v1', 'write https://api.example.com/v1'),
    ('http:/api.example.com/v1', 'write https://api.example.com/v1'),
    ('http://', 'name a host'),
    ('http://[::1', 'cannot be read as an address'),
    ('http://h:port/v1', 'cannot be read as an address'),
    ('http://h.org/v1/chat/completions/', 'write http://h.org/v1'),
    ('http://h\n.org/v1', 'holds a space or a control character')])
def test_the_error_for_a_bad_address_says_how_to_write_it(url, says):
    with pytest.raises(KdnbError) as e: APIGenerator('m', url)
    assert says in str(e.value)


def test_an_address_in_brackets_is_shown_as_it_is():
    assert APIGenerator('m', 'http://[::1]:8080/v1/').about['place'] == 'http://[::1]:8080/v1'


def test_an_address_from_the_environment_needs_no_key(server, monkeypatch):
    monkeypatch.delenv('OPENAI_API_KEY')
    monkeypatch.setenv('OPENAI_BASE_URL', server.at('good'))
    g = APIGenerator('m', **FAST)
    assert len(make_transfer_set(g, ENTITY, n=2).continuations) == 2 and g.about['place'] == server.at('good')


def test_the_error_for_an_address_without_v1_suggests_it(server):
    began = time.time()
    g = APIGenerator('m', server.at('without v1').removesuffix('/v1'), wait=(.05, 60.))
    with pytest.raises(KdnbError) as e: make_transfer_set(g, ENTITY)
    assert 'a page (HTML) and not as an API: check the address; the address may lack /v1' in str(e.value)
    assert f"so try --base-url {server.at('without v1')}." in str(e.value)
    assert time.time() - began < 10
    assert make(server, 'without v1')[1].continuations # and the advice helps


def test_the_error_for_404_at_an_address_without_v1_suggests_it():
    s = start(lambda i, q: '404')
    try:
        with pytest.raises(KdnbError) as e:
            make_transfer_set(APIGenerator('m', s.url.removesuffix('/v1'), **FAST), ENTITY)
        with pytest.raises(KdnbError) as with_v1: make_transfer_set(APIGenerator('m', s.url, **FAST), ENTITY)
    finally: stop(s)
    assert "has no model 'm', or no endpoint for chat (404: wrong: Bearer …): check the" in str(e.value)
    assert f'the address may lack /v1, so try --base-url {s.url}.' in str(e.value)
    assert 'lack /v1' not in str(with_v1.value)


# --- settings that a server does not take

@pytest.mark.parametrize('behaviour, change', [
    ('seed 400', 'seed left out'),
    ('seed 422', 'seed left out'),
    ('seed by param', 'seed left out'),
    ('top_p 400', 'top_p left out'),
    ('max_tokens 400', 'max_tokens sent as max_completion_tokens')])
def test_a_rejected_setting_is_left_out_or_renamed_if_the_meaning_stays(
        server, tmp_path, behaviour, change):
    g, ts = make(server, behaviour, tmp_path/'r.jsonl')
    assert len(ts.continuations) == 4 and ts.made_by['changes'] == [change] and ts.spent['failed'] == 1
    assert ts.spent['calls'] == 1
    asked = len(server.asked_at(behaviour))
    make_transfer_set(g, OTHER, n=4, rounds=1)
    assert len(server.asked_at(behaviour)) == asked + 1 # it has learned
    if change.endswith('max_completion_tokens'):
        assert server.asked_at(behaviour)[-1]['max_completion_tokens'] == 256


def test_a_server_that_takes_one_text_a_call_is_asked_one_by_one(server):
    g, ts = make(server, 'no n')
    assert len(ts.continuations) == 4 and [q.get('n') for q in server.asked_at('no n')] == [4] + [None]*4
    assert ts.made_by['changes'] == ['n left out']


def test_a_setting_that_changes_the_texts_is_not_left_out(server):
    said = fault(server, 'temperature 400')
    assert "400: 'temperature' does not support 0.9 with this model. Only the default (1)" in said
    assert 'change --temperature' in said
    assert len(make(server, 'temperature 400', temperature=1.)[1].continuations) == 4
    assert 'max_tokens is too large: at most 100' in fault(server, 'too many tokens')
    assert 'change --max-new-tokens' in fault(server, 'too many tokens')


@pytest.mark.parametrize('behaviour', ('error 200', 'error text 200', 'detail 200'))
def test_an_error_with_the_status_200_has_the_servers_words(server, behaviour):
    assert 'the model velmora-9 is not loaded' in fault(server, behaviour)
    assert len(server.asked_at(behaviour)) == 1


@pytest.mark.parametrize('behaviour', ('text error 400', 'list error 400'))
def test_an_error_of_any_shape_has_the_servers_words(server, behaviour):
    assert 'I do not like it' in fault(server, behaviour)


# --- what was paid for

EMPTY = (
    'null content', 'no choices', 'blank', 'only reasoning', 'null choices', 'choices object',
    'choices numbers', 'message text', 'content number', 'content object', 'NaN')


@pytest.mark.parametrize('behaviour', EMPTY)
def test_an_answer_without_a_text_is_recorded_and_asked_for_again_only_twice(server, tmp_path, behaviour):
    said = fault(server, behaviour, tmp_path/'r.jsonl', price=(1., 1.))
    asked = len(server.asked_at(behaviour))
    assert asked == 3 and 'gave no text, 3 times one after the other' in said
    rows = [json.loads(l) for l in (tmp_path/'r.jsonl').read_text().splitlines()]
    assert len(rows) == 3
    assert all(r['calls'] == 1 and r['texts'] == [] and r['tokens_in'] > 0 and r['cost'] > 0 for r in rows)
    assert Replies(tmp_path/'r.jsonl').total['calls'] == 3
    if behaviour == 'only reasoning':
        assert '--max-new-tokens' in said and rows[0]['tokens_out'] == 20 # it was written, and paid for


def test_paid_answers_without_a_text_count_to_the_budget(server, tmp_path):
    "At this price two calls fit."
    before = len(server.asked_at('null content'))
    said = fault(
        server, 'null content', tmp_path/'r.jsonl', price=(0., 1000.), budget=1.06, max_new_tokens=256)
    assert 'the budget of $1.06 is used up: $0.0400 are spent' in said
    assert len(server.asked_at('null content')) == before + 2


def test_an_answer_without_a_text_between_others_is_dropped_by_its_reason(server, tmp_path):
    g, ts = make(server, 'half null', tmp_path/'r.jsonl')
    assert len(ts.continuations) == 2 and ts.dropped == {NO_TEXT: 2}
    assert len(server.asked_at('half null')) == 1
    g, ts = make(server, 'refusal')
    assert ts.dropped == {REFUSED: 4} and ts.spent['calls'] == 1


def test_entities_without_any_text_do_not_stop_the_others(tmp_path):
    "Once a server has given texts, an entity for which it gives none is dropped by the reason."
    s = start(lambda i, q: 'null text' if 'Brask' in json.dumps(q) else '')
    try:
        g = APIGenerator('m', s.url, tmp_path/'r.jsonl', **FAST, concurrency=1)
        sets = make_transfer_sets(g, [ENTITY, OTHER], tmp_path/'s.jsonl', progress=False, n=2, rounds=1)
        assert [len(sets[e.key].continuations) for e in (ENTITY, OTHER)] == [2, 0]
        assert sets[OTHER.key].dropped == {NO_TEXT: 2}
        assert sets[OTHER.key].spent['calls'] == 3 == sets[OTHER.key].spent['failed']
    finally: stop(s)


@pytest.mark.parametrize('behaviour, tokens_out', [
    ('no completion_tokens', None),
    ('null completion_tokens', None),
    ('text completion_tokens', None),
    ('negative tokens', None),
    ('usage list', None),
    ('no usage', None),
    ('huge tokens', None),
    ('total only', 15)])
def test_a_call_is_counted_with_any_usage_field(server, tmp_path, behaviour, tokens_out):
    g, ts = make(server, behaviour, tmp_path/'r.jsonl', price=(1., 1.))
    texts = ''.join(c.text for c in ts.continuations)
    row = json.loads((tmp_path/'r.jsonl').read_text())
    assert len(ts.continuations) == 4 and row['calls'] == 1 and row['tokens_in'] >= 10
    assert row['tokens_out'] == (tokens_out or -(-len(texts)//4))
    dollars = pytest.approx((row['tokens_in'] + row['tokens_out'])/1e6)
    assert Replies(tmp_path/'r.jsonl').total['cost'] == row['cost'] == dollars


@pytest.mark.parametrize('behaviour', ('list', 'number', 'null', 'text', 'deep', 'not utf-8', 'nothing'))
def test_a_reply_that_is_no_answer_is_one_sentence(server, behaviour):
    assert 'one after the other (the last time: an answer that is' in fault(server, behaviour, tries=3)


@pytest.mark.parametrize('behaviour', BEHAVIOURS)
def test_no_behaviour_of_a_server_is_a_traceback(server, tmp_path, behaviour):
    "And what is in the files afterwards can be read."
    for endpoint, prompt in (('chat', 'paper'), ('completions', 'paper')):
        try:
            make_transfer_sets(
                APIGenerator(
                    'm', server.at(behaviour), tmp_path/'r.jsonl', **FAST, endpoint=endpoint, tries=2),
                [ENTITY], tmp_path/'s.jsonl', progress=False, n=2, prompts=(prompt,))
        except KdnbError as e: assert str(e) and '\n' not in str(e)
        Replies(tmp_path/'r.jsonl')
        assert not (tmp_path/'s.jsonl').exists() or read_transfer_sets(tmp_path/'s.jsonl')


@pytest.mark.parametrize(
    'wait', ('nan', 'inf', '-inf', '-5', 'soon', '9e99999', 'Fri, 31 Dec 9999 23:59:59 -9999', ''))
def test_an_impossible_pause_is_ignored(wait):
    s = start(lambda i, q: '429' if i == 1 else '', retry_after=wait)
    began = time.time()
    try:
        assert len(make_transfer_set(APIGenerator('m', s.url, **FAST), ENTITY, n=4).continuations) == 4
        assert time.time() - began < 5
    finally: stop(s)


# --- texts

@pytest.mark.parametrize('behaviour', (
    'thinking', 'thinking upper case', 'thought begun by the prompt', 'reasoning field',
    'parts', 'markdown', 'numbered', 'heading', 'preamble', 'end marker'))
def test_a_text_is_kept_without_its_frame(server, behaviour):
    _, ts = make(server, behaviour)
    assert len(ts.continuations) == 4
    for c in ts.continuations:
        assert c.text.startswith('Velmora Junction is what story number ')
        assert c.text.endswith(' stories is about.')
        assert c.mention == (0, 16)


def test_type_parameters_are_text(server):
    for c in make(server, 'type parameters')[1].continuations:
        assert c.text.endswith('is about, a vector<int> of <T>.')


def test_thoughts_alone_are_dropped_by_their_reason(server):
    assert make(server, 'thought only')[1].dropped == {'only thinking': 4}
    assert make(server, 'preamble only')[1].dropped == {'no mention': 4}


def test_half_characters_are_replaced(server, tmp_path):
    g, ts = make(server, 'half characters', tmp_path/'r.jsonl')
    assert all('\ufffd' in c.text for c in ts.continuations) and len(ts.continuations) == 4
    again = APIGenerator('m', server.at('half characters'), tmp_path/'r.jsonl', **FAST)
    assert len(make_transfer_set(again, ENTITY, n=4, rounds=1).continuations) == 4


NAMES = {
    'C#': 'C# is a language.',
    'M*A*S*H': 'M*A*S*H is a series.',
    '*NSYNC': '*NSYNC is a band.',
    'snake_case_name': 'snake_case_name is a variable.',
    '__init__': '__init__ is a method.',
    '"Weird Al"': '"Weird Al" is a singer.',
    '1. FC Ondel': '1. FC Ondel is a club.',
    '#MeToo': '#MeToo is a movement.',
    'f(x) = x**2': 'f(x) = x**2 is a function.',
    '-ing': '-ing is an ending.',
    'vector<int>': 'vector<int> is a type.',
    '`ls`': '`ls` is a command.'}


@pytest.mark.parametrize('name', NAMES)
def test_marks_are_taken_off_and_names_stay_whole(name):
    text = NAMES[name]
    with_marks = [
        text,
        f'> {text}',
        f'- **{name}**{text[len(name):]}',
        f'2. {text}',
        f'## {text}',
        f'“{text}”',
        f'Sure! Here is a sentence about {name}:\n\n{text}\n\nI hope that helps!']
    for marked in with_marks:
        got = clean(marked, names=(name,), marks=True)
        assert got == text and find_mention(got, (name,)) == (0, len(name)), marked
    assert clean(f' {text[len(name):]} It', name, names=(name,)).startswith(name)


@pytest.mark.parametrize('text', (
    'Velmora has 2 * 3 * 4 parts.',
    'Velmora_Junction is an __init__ of snake_case.',
    'Velmora is - so they say - fun.',
    'Velmora costs $5 and #1 is the best.',
    'Sure enough, Velmora is fun.',
    'Velmora: a town.',
    "Velmora's bakers' bread is 'good'."))
def test_characters_that_are_no_marks_stay(text): assert clean(text, names=('Velmora',), marks=True) == text


def test_the_base_models_texts_are_taken_as_they_are():
    "Marks and preambles are removed from chats only: a base model that continues a text keeps its own."
    assert clean(' is *fun* - **very**.', 'Velmora') == 'Velmora is *fun* - **very**.'
    assert clean("Here's more:\nVelmora") == "Here's more:"


# --- the command

def test_a_run_that_keeps_no_text_gives_the_reason_and_status_1(server, own, tmp_path):
    done = generate(*api_args(server, 'unnamed', own, tmp_path/'s.jsonl', '--json'))
    out = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1 and out['dropped'] == {'no mention': 12} and out['continuations'] == 0
    assert out['none_kept'] == ['Velmora Junction', 'Brask Hollow']
    assert 'nothing was kept of 12 drafts (12 no mention); what may help: another --prompt' in done.stderr
    assert 'Traceback' not in done.stderr
    thoughts = generate(*api_args(server, 'thought only', own, tmp_path/'t.jsonl'))
    assert thoughts.returncode == 1 and '12 only thinking' in thoughts.stderr
    assert 'more --max-new-tokens' in thoughts.stderr


def test_a_run_names_the_entities_without_texts(kdnb, own, tmp_path):
    s = start(write=lambda prompt, i: f'Brask Hollow is drama number {i} of them all.')
    try:
        code, out, _ = kdnb(
            'generate', '--generator', 'openai:m', '--base-url', s.url, '--entities', own,
            '--n', 2, '--out', tmp_path/'s.jsonl', '--json')
    finally: stop(s)
    assert code == 0 and 'none kept for Velmora Junction' in out
    assert json.loads(out.splitlines()[-1])['none_kept'] == ['Velmora Junction']


@pytest.mark.parametrize('option', (
    ('--price', 'nan', '1'),
    ('--price', '1', '-1'),
    ('--budget', 'nan', '--price', '1', '1'),
    ('--budget', '-1', '--price', '1', '1'),
    ('--budget', 'inf', '--price', '1', '1'),
    ('--timeout', 'inf'),
    ('--timeout', 'nan'),
    ('--timeout', '0'),
    ('--temperature', 'nan'),
    ('--temperature', '-1'),
    ('--top-p', 'inf'),
    ('--top-p', '0'),
    ('--n', '0'),
    ('--n', '-3'),
    ('--max-new-tokens', '0'),
    ('--rounds', '0'),
    ('--concurrency', '0'),
    ('--tries', '0'),
    ('--concurrency', '1000000'),
    ('--prompt', 'paper,paper'),
    ('--prompt', ''),
    ('--drop', 'nothing')))
def test_an_impossible_setting_is_one_sentence_before_any_call(server, kdnb, own, tmp_path, option):
    asked = len(server.asked)
    code, out, err = kdnb('generate', *api_args(server, 'good', own, tmp_path/'s.jsonl'), *option)
    assert code == 2 and err.strip().splitlines()[-1].startswith('kdnb: ') and 'Traceback' not in err
    assert len(server.asked) == asked


def test_dry_run_changes_nothing(server, kdnb, own, tmp_path):
    def files():
        return {
            str(p): (p.read_bytes() if p.is_file() else '', p.stat().st_mtime_ns)
            for p in sorted(tmp_path.rglob('*'))}
    args = api_args(server, 'good', own, tmp_path/'new folder'/'s.jsonl', '--dry-run')
    before = files(), len(server.asked)
    assert kdnb('generate', *args)[0] == 0 and (files(), len(server.asked)) == before
    assert kdnb('generate', *args[:-1])[0] == 0
    for f in ('s.jsonl', 's.jsonl.replies.jsonl'):
        with open(tmp_path/'new folder'/f, 'a') as h:
            h.write('{"entity": "Half' if f == 's.jsonl' else '{"key": "ha')
    before = files(), len(server.asked)
    assert kdnb('generate', *args)[0] == 0 and (files(), len(server.asked)) == before


def test_an_interrupted_command_continues_and_pays_nothing_twice(server, kdnb, own, tmp_path):
    one_by_one = '--concurrency', 1, '--json' # the last lines of both files are of one entity
    args = ('generate', *api_args(server, 'good', own, tmp_path/'s.jsonl'), *one_by_one)
    code, out, _ = kdnb(*args)
    whole = {f: (tmp_path/f).read_bytes() for f in ('s.jsonl', 's.jsonl.replies.jsonl')}
    for cut in (1, 20, 200): # bytes that the last line lacks, in both files
        for f, b in whole.items(): (tmp_path/f).write_bytes(b[:-cut])
        asked = len(server.asked_at('good'))
        code, out, err = kdnb(*args)
        assert code == 0 and json.loads(out.splitlines()[-1])['continuations'] == 4, err
        assert len(server.asked_at('good')) == asked + (cut > 1)
        assert {len((tmp_path/f).read_text().splitlines()) for f in whole} == {2}
        assert len(read_transfer_sets(tmp_path/'s.jsonl')) == 2
        assert Replies(tmp_path/'s.jsonl.replies.jsonl').total['calls'] == 2


FOREIGN = {
    'thesis.txt': 'My thesis\n\nIt is long, and has no end',
    'ends well.txt': 'My thesis\n',
    'table.csv': 'name,definition\nVelmora,a town\n',
    'open table.csv': 'name,definition\nVelmora,"a to',
    'other.jsonl': '{"id": 3, "text": "mine"}\n',
    'open.jsonl': '{"id": 3, "text": "mine"}\n{"id": 4, "te',
    'one object.json': '{"entity": "x",\n "continuations": 3}',
    'mixed.jsonl': '{"entity": "x"}\n{"name": "y"}\n{"entity": "z',
    'replies.jsonl': '{"key": 5, "texts": "mine"}\n',
    'binary': '\x00\x01PK'}


@pytest.mark.parametrize('name', FOREIGN)
@pytest.mark.parametrize('link', (False, True), ids=('file', 'link'))
def test_a_foreign_file_stays_byte_for_byte(server, kdnb, own, tmp_path, name, link):
    path, asked = tmp_path/name, len(server.asked)
    path.write_text(FOREIGN[name])
    if link: (tmp_path/'link').symlink_to(path)
    given = tmp_path/'link' if link else path
    for option in ('--out', '--replies'):
        args = api_args(server, 'good', own, tmp_path/'s.jsonl')
        code, _, err = kdnb('generate', *args, option, given)
        assert code == 2 and err.strip().startswith('kdnb: ') and path.read_text() == FOREIGN[name], err
        with pytest.raises(KdnbError):
            make_transfer_sets(
                APIGenerator('m', server.at('good'), given if option == '--replies' else None, **FAST),
                [ENTITY], given if option == '--out' else None, progress=False, n=2)
        assert path.read_text() == FOREIGN[name]
    assert len(server.asked) == asked and given.is_symlink() == link


def test_sets_and_replies_are_not_one_file(server, own, kdnb, tmp_path):
    (tmp_path/'link').symlink_to(tmp_path/'s.jsonl')
    for other in (tmp_path/'s.jsonl', tmp_path/'link'):
        code, _, err = kdnb(
            'generate', *api_args(server, 'good', own, tmp_path/'s.jsonl'), '--replies', other)
        assert code == 2 and 'is given both for the transfer sets and for the replies' in err
        assert not (tmp_path/'s.jsonl').exists()
    code, _, err = kdnb('generate', *api_args(server, 'good', own, own))
    assert code == 2 and own.read_text().startswith('{"name"')


def test_two_commands_with_one_file_do_not_work_on_it_together(own, tmp_path):
    s = start(delay=.5)
    args = (
        '--generator', 'openai:m', '--base-url', s.url, '--entities', own, '--n', 2, '--out',
        tmp_path/'s.jsonl')
    try:
        first = subprocess.Popen(
            [*KDNB, 'generate', *map(str, args)], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        while not s.asked and first.poll() is None: time.sleep(.01)
        first.send_signal(signal.SIGSTOP) # it works for as long as we want
        with pytest.raises(KdnbError, match='another kdnb is working on'):
            make_transfer_sets(APIGenerator('m', s.url, tmp_path/'s.jsonl.replies.jsonl', **FAST), [ENTITY],
                               progress=False, wait=0., n=2) # nor on its answers
        second = generate(*args)
        first.send_signal(signal.SIGCONT)
        assert second.returncode == 2 and 'another kdnb is working on' in second.stderr
        assert first.wait(timeout=30) == 0
        assert len((tmp_path/'s.jsonl').read_text().splitlines()) == 2 == len(s.asked)
        assert generate(*args).returncode == 0 and len(s.asked) == 2
    finally: stop(s)


def test_a_second_report_waits_for_the_sets_of_the_first(tiny, tmp_path):
    "Reports that run in parallel share the file of their transfer sets."
    path, done = tmp_path/'s.jsonl', []
    with locked(path):
        t = threading.Thread(
            target=lambda: done.append(
                make_transfer_sets(tiny, [ENTITY], path, progress=False, n=1, rounds=1, drop=())))
        t.start()
        time.sleep(.5)
        assert not done and not path.exists()
    t.join(timeout=60)
    assert len(done) == 1 and path.exists()


# --- a full disk

FULL = '''
import json, resource, sys
from pathlib import Path
from kdnb.transfer.openai_api import APIGenerator
from kdnb.data.entities import Entity
from kdnb.core.errors import KdnbError
from kdnb.transfer.generator import make_transfer_sets
url, folder, file, limit = sys.argv[1:]
entities = [Entity(f'Velmora{c}', f'Velmora{c} is a comedy about bakers.') for c in 'abcdefgh']
other = dict(sets=Path(folder)/'s.jsonl', replies=Path(folder)/'r.jsonl')
if file == 'replies': other['sets'] = None # or they would be the first to be full
else: other['replies'] = None
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
g = APIGenerator('m', url, other['replies'], wait=(.001, .01))
try: make_transfer_sets(g, entities, other['sets'], progress=False, n=3)
except KdnbError as e: print(e); sys.exit(2)
'''


@pytest.mark.parametrize('file', ('replies', 'sets'))
def test_a_full_disk_is_one_sentence_and_the_same_command_continues(server, tmp_path, file):
    path = tmp_path/('r.jsonl' if file == 'replies' else 's.jsonl')
    def run(limit):
        return subprocess.run(
            [sys.executable, '-c', FULL, server.at('good'), tmp_path, file, str(limit)],
            capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    full = run(2500)
    assert full.returncode == 2 and not full.stderr.strip(), full.stderr
    assert f'cannot write {path}: File too large; the lines before it are kept' in full.stdout
    rows = path.read_text()
    assert rows.endswith('\n') and 0 < len(rows) <= 2500 and all(json.loads(l) for l in rows.splitlines())
    before = len(server.asked_at('good'))
    assert run(10**6).returncode == 0 and path.read_text().startswith(rows)
    assert len(path.read_text().splitlines()) == 8
    assert len(server.asked_at('good')) - before == 8 - len(rows.splitlines())


# --- prompts and templates

PROMPT_FILES = {
    'attribute': (
        '{"mine": {"text": "{name.__class__}"}}', "unknown hole of a prompt (in its text) 'name.__class__'"),
    'index': ('{"mine": {"text": "{name[0]}"}}', "unknown hole of a prompt (in its text) 'name[0]'"),
    'number': ('{"mine": {"text": "{0}"}}', "unknown hole of a prompt (in its text) '0'"),
    'empty hole': ('{"mine": {"text": "{}"}}', "unknown hole of a prompt (in its text) ''"),
    'conversion': ('{"mine": {"text": "{name!r}"}}', "has more than a name in the hole 'name'"),
    'format': ('{"mine": {"text": "{name:>999999999}"}}', "has more than a name in the hole 'name'"),
    'nested': ('{"mine": {"text": "{name:{vary}}"}}', "has more than a name in the hole 'name'"),
    'nested attribute': ('{"mine": {"text": "{name:{vary.x}}"}}', 'has more than a name'),
    'starts is text': (
        '{"mine": {"text": "x", "starts": "abc"}}',
        "starts of a prompt is 'abc': it must be a list of texts"),
    'starts is a number': (
        '{"mine": {"text": "x", "starts": 5}}', 'starts of a prompt is 5: it must be a list'),
    'starts is an object': ('{"mine": {"text": "x", "starts": {"a": 1}}}', 'it must be a list'),
    'vary in vary': (
        '{"mine": {"text": "{vary}", "vary": ["{vary}"]}}',
        "unknown hole of a prompt (in its vary) 'vary'"),
    'vary holds null': ('{"mine": {"text": "x", "vary": [null]}}', 'vary of a prompt holds None'),
    'chat is a list': ('{"mine": {"chat": ["x"]}}', "chat of a prompt holds ['x']"),
    'lines is true': ('{"mine": {"text": "x", "lines": true}}', 'lines of a prompt is True'),
    'lines is text': ('{"mine": {"text": "x", "lines": "2"}}', "lines of a prompt is '2'"),
    'version': ('{"mine": {"text": "x", "version": [1]}}', 'version of a prompt is [1]'),
    'about': ('{"mine": {"text": "x", "about": {}}}', 'about of a prompt holds {}'),
    'prompt is a list': ('{"mine": [1]}', 'must be an object with text or chat'),
    'name twice': ('{"mine": {"text": "x"}, "mine": {"text": "y"}}', "the key 'mine' appears twice"),
    'name with a comma': ('{"a,b": {"text": "x"}}', 'without a comma'),
    'no name': ('{"": {"text": "x"}}', 'its name must be text'),
    'half a character': ('{"mine": {"text": "\\ud800"}}', 'half of a character'),
    'deep': ('['*100_000, 'is not JSON'),
    'null': ('null', 'holds a NoneType'),
    'not UTF-8': (b'\xff\xfe', 'is not UTF-8'),
    'a number': ('3', 'holds a int')}


@pytest.mark.parametrize('name', PROMPT_FILES)
def test_a_prompt_file_of_a_wrong_shape_is_one_sentence(kdnb, tmp_path, name):
    text, says = PROMPT_FILES[name]
    (tmp_path/'p.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KdnbError) as e: with_own(tmp_path/'p.json')
    assert says in str(e.value) and str(tmp_path/'p.json') in str(e.value) and '\n' not in str(e.value)
    code, _, err = kdnb('generate', '--prompt-file', tmp_path/'p.json', '--list-prompts')
    assert code == 2 and err == f'kdnb: {e.value}\n'


def test_holes_are_filled_and_nothing_is_evaluated(tiny, tmp_path):
    e = Entity('{name.__class__}', 'The {name.__class__} is {definition} and {0}.')
    mine = dict(text='{definition} {{x}} {vary}', vary=['{name}: {{y}}'])
    (tmp_path/'p.json').write_text(json.dumps({'mine': mine}))
    assert plan(tiny, [e], known=with_own(tmp_path/'p.json'), prompts=['mine'])['prompts'] == {
        'mine': 'The {name.__class__} is {definition} and {0}. {x} {name.__class__}: {y}'}


TEMPLATES = {
    'raises': ("{{ raise_exception('only for system') }}", 'fails (TemplateError: only for system)'),
    'wrong syntax': ('{% for %}', 'fails (TemplateSyntaxError:'),
    'undefined': ('{{ messages[7].content.x }}', 'fails (UndefinedError:'),
    'empty': ('{# nothing #}', 'gives no text'),
    'blank': (' \n ', 'gives no text'),
    'divides by zero': ('{{ 1 // 0 }}', 'fails (ZeroDivisionError:'),
    'names': ({'tools': 'x'}, 'fails (ValueError:')}


@pytest.mark.parametrize('name', TEMPLATES)
def test_a_chat_template_that_cannot_be_used_is_one_sentence(tiny, name):
    template, says = TEMPLATES[name]
    tiny.tokenizer.chat_template = template
    with pytest.raises(KdnbError) as e: make_transfer_set(tiny, ENTITY, prompts=('genres',), n=1)
    assert f'the chat template of {tiny.name} ' in str(e.value) and says in str(e.value)
    assert "such as 'started'" in str(e.value)
    assert '\n' not in str(e.value)
    assert render(tiny, PROMPTS['started'], ENTITY)[1] == 'Velmora Junction is' # the advice helps


# --- files of replies, generators of one's own

@pytest.mark.parametrize('wrong', (
    dict(key=5),
    dict(texts='Velmora'),
    dict(texts=[None]),
    dict(refused={}),
    dict(calls='1'),
    dict(tokens_in=None),
    dict(tokens_out=True),
    dict(cost=float('nan')),
    dict(cost=-1),
    dict(tokens_in=float('inf'))), ids=str)
def test_a_reply_of_a_wrong_type_is_named_by_its_line(tmp_path, wrong):
    row = dict(key='a', texts=['Velmora is fun.'], refused=[], calls=1, tokens_in=10, tokens_out=5, cost=.1)
    (tmp_path/'r.jsonl').write_text(json.dumps(row) + '\n' + json.dumps({**row, **wrong}) + '\n')
    with pytest.raises(
            KdnbError, match=f'line 2, is no answer of a generator .its field {list(wrong)[0]} must be'):
        Replies(tmp_path/'r.jsonl')


def test_half_characters_of_any_generator_are_replaced(tiny, tmp_path):
    class Own(LMGenerator):
        def write(self, entity, prompts, want, r, how, spent, passages):
            return [Draft(p, '', f'{entity.name} is \ud83d\ude00 fun \udc00 and more.') for p in prompts]
    sets = make_transfer_sets(
        Own(tiny), [ENTITY], tmp_path/'s.jsonl', progress=False, n=1, prompts=('named',))
    assert sets[ENTITY.key].continuations[0].text == 'Velmora Junction is 😀 fun \ufffd and more.'
    assert read_transfer_sets(tmp_path/'s.jsonl') == sets
