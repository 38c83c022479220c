"""A server with the OpenAI API that makes every kind of fault, and counts the texts that it delivered.

`start(fault)` starts it: a function gives the fault of each request. The same server also has a path for
each behavior, so that one is enough for many tests: `s.at('null content')` is the address of a server that
always sends null content.
"""
import http.server, itertools, json, random, socket, struct, threading, time
from urllib.parse import quote, unquote, urlsplit

PASSING = ('429', '500', '503', 'reset', 'cut', 'not json', 'html', 'empty choices', 'null text')


def completion(q, texts, chat=True, usage=True, **message):
    "What a good server answers."
    shape = lambda t: {'message': {'role': 'assistant', 'content': t, **message}} if chat else {'text': t}
    value = {'id': '1', 'object': 'x', 'created': 0, 'model': q['model'],
             'choices': [{'index': i, 'finish_reason': 'stop', **shape(t)} for i, t in enumerate(texts)]}
    n = len(texts)
    return {**value,
            'usage': {'prompt_tokens': 10, 'completion_tokens': 5*n,
                      'total_tokens': 10 + 5*n}} if usage else value


def only(value): return lambda api, q, texts: (200, value(q, texts) if callable(value) else value)
def usage(**u): return only(lambda q, texts: {**completion(q, texts), 'usage': u})
def written(how, **message): return only(lambda q, texts: completion(q, [how(t) for t in texts], **message))


def finish(reason, text=None):
    return only(lambda q,
                texts: {**(v := completion(q, [text]*len(texts))),
                        'choices': [{**c, 'finish_reason': reason} for c in v['choices']]})


def refuses(name, message, status=400, shape=lambda m, name: {'error': {'message': m, 'param': None}}):
    "A server that does not take a setting."
    return lambda api, q, texts: (status, shape(message, name)) if name in q else (200, completion(q, texts))


def no_n(api, q, texts):
    if q.get('n', 1) > 1: return 400, {'error': {'message': 'Only n = 1 is supported', 'param': 'n'}}
    return 200, completion(q, texts[:1])


def echo(how):
    "A server that repeats the key, in one of the ways in which servers do."
    def answer(api, q, texts):
        key = api.headers.get('authorization', '').removeprefix('Bearer ')
        return 400, {'error': {'message': f'wrong key: {how(key)}'}}
    return answer


def without_v1(api, q, texts): # right below /v1 only
    page = b'<!doctype html><html><title>Welcome</title></html>', {'content-type': 'text/html'}
    return (200, completion(q, texts)) if '/v1/' in api.path else (200, *page)


BEHAVIOURS = {
    'good': only(completion),
    # one setting is not taken
    'seed 400': refuses('seed', 'Unrecognized request argument supplied: seed'),
    'seed 422': refuses('seed', 'Extra inputs are not permitted', 422, lambda m,
                        name: {'detail': [{'type': 'extra_forbidden', 'loc': ['body', name], 'msg': m,
                                           'input': 3}]}),
    'seed by param': refuses('seed', 'This is not supported', shape=lambda m,
                             name: {'error': {'message': m, 'param': name}}),
    'top_p 400': refuses('top_p', '`top_p` is not supported by this model'),
    'max_tokens 400': refuses('max_tokens', "Unsupported parameter: 'max_tokens' is not supported with this "
                                            "model. Use 'max_completion_tokens' instead."),
    'temperature 400': lambda api, q,
              texts: (400,
                      {'error': {'message': "'temperature' does not support 0.9 with this model. Only the "
                                            "default (1) is supported.", 'param': 'temperature'}})
              if q.get('temperature') != 1 else (200, completion(q, texts)),
    'no n': no_n,
    'too many tokens': lambda api, q,
              texts: (400, {'error': 'max_tokens is too large: at most 100'}) if q.get('max_tokens', 0) > 100
              else (200, completion(q, texts)),
    'text error 400': lambda api, q, texts: (400, b'I do not like it'),
    'list error 400': lambda api, q, texts: (400, ['I do not like it']),
    # the status 200, and no text
    'error 200': only({'error': {'message': 'the model velmora-9 is not loaded', 'code': 404}}),
    'error text 200': only({'error': 'the model velmora-9 is not loaded'}),
    'detail 200': only({'detail': 'the model velmora-9 is not loaded'}),
    'without v1': without_v1,
    'null content': only(lambda q, texts: completion(q, [None]*len(texts))),
    'null choices': only({'choices': None, 'usage': {'prompt_tokens': 10, 'completion_tokens': 5}}),
    'no choices': only(lambda q, texts: completion(q, [])),
    'blank': only(lambda q, texts: completion(q, [' \n']*len(texts))),
    'only reasoning': only(lambda q,
                           texts: {**(v := completion(q, [None]*len(texts),
                                                      reasoning_content='Let me think about it.')),
                                   'choices': [{**c, 'finish_reason': 'length'} for c in v['choices']]}),
    'refusal': only(lambda q, texts: completion(q, [None]*len(texts), refusal='I cannot do that.')),
    'half null': only(lambda q, texts: completion(q, [t if i % 2 else None for i, t in enumerate(texts)])),
    # the wrong shape
    'choices object': only(lambda q, texts: {**completion(q, texts), 'choices': {'0': 'text'}}),
    'choices numbers': only(lambda q, texts: {**completion(q, texts), 'choices': [1, 2]}),
    'message text': only(lambda q, texts: {**completion(q, texts), 'choices': [{'message': 'a text'}]}),
    'content number': only(lambda q, texts: completion(q, [7]*len(texts))),
    'content object': only(lambda q, texts: completion(q, [{'text': 'x'}]*len(texts))),
    'list': only([1, 2]),
    'number': only(b'3'),
    'null': only(b'null'),
    'text': only(b'"Velmora"'),
    'deep': only(b'['*100_000),
    'NaN': only(b'{"choices": NaN, "usage": {"prompt_tokens": NaN, "completion_tokens": Infinity}}'),
    'not utf-8': only(b'\xff\xfe{'),
    'nothing': only(b''),
    # the wrong numbers
    'no completion_tokens': usage(prompt_tokens=10),
              'null completion_tokens': usage(prompt_tokens=10, completion_tokens=None),
    'text completion_tokens': usage(prompt_tokens=10, completion_tokens='many'),
              'negative tokens': usage(prompt_tokens=-10, completion_tokens=-5),
    'total only': usage(prompt_tokens=10, total_tokens=25),
              'usage list': only(lambda q, texts: {**completion(q, texts), 'usage': [1, 2]}),
    'no usage': only(lambda q, texts: completion(q, texts, usage=False)),
              'huge tokens': usage(prompt_tokens=10, completion_tokens=10**400),
    # texts as servers write them
    'thinking': written(lambda t: f'<think>\nI shall name it.\n</think>\n\n{t}'),
    'thinking upper case': written(lambda t: f'<THINKING>Hm.</THINKING>{t}'),
    'thought only': written(lambda t: f'<think>\n{t} But wait'),
    'thought begun by the prompt': written(lambda t: f'I shall name it.\n</think>\n\n{t}'),
    'reasoning field': written(lambda t: t, reasoning_content='I shall name it.'),
    'parts': written(lambda t: [{'type': 'thinking', 'thinking': 'Hm.'}, {'type': 'text', 'text': t[:9]},
                                {'type': 'text', 'text': t[9:]}]),
    'type parameters': written(lambda t: f'{t[:-1]}, a vector<int> of <T>.'),
    'markdown': written(lambda t: f'> - **{t[:9]}**{t[9:]}'),
    'numbered': written(lambda t: f'1. "{t}"'),
    'heading': written(lambda t: f'## {t}'),
    'preamble': written(lambda t: f'Sure! Here is a continuation:\n\n{t}'),
    'preamble only': written(lambda t: 'Sure! Here is a continuation:'),
    'end marker': written(lambda t: f'{t}<|im_end|>\n<|im_start|>user'),
    'half characters': written(lambda t: f'{t[:-1]} \ud83d.'),
    'unnamed': written(lambda t: 'Nobody is named here.'),
    # what a key looks like when a server repeats it
    'echo': echo(str), 'echo repr': echo(lambda k: repr({'key': k})),
              'echo url': echo(lambda k: quote(k, safe='')),
              'echo url lower': echo(lambda k: quote(k, safe='').lower()),
    'echo json': echo(lambda k: json.dumps(json.dumps(k))), 'echo query': lambda api, q,
              texts: (400, {'error': f'wrong: {api.path}'}),
    'echo basic': lambda api, q, texts: (400, {'error': f"wrong: {api.headers.get('authorization')}"}),
}


class API(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        s, body = self.server, self.rfile.read(int(self.headers['content-length']))
        q = json.loads(body)
        behaviour, path = self.behaviour()
        with s.lock:
            s.asked.append((self.path, q, self.headers.get('authorization')))
            fault = '' if behaviour else s.fault(len(s.asked), q)
        chat, n = path.endswith('/chat/completions'), q.get('n', 1)
        prompt = q['messages'][0]['content'] if chat else q['prompt']
        if behaviour:
            with s.lock: texts = [s.write(prompt, next(s.count)) for _ in range(n)]
            return self.send(*BEHAVIOURS[behaviour](self, q, texts))
        self.fail(fault, q, chat, n, prompt)

    def behaviour(self): # of the path, and the rest of it
        first, _, rest = urlsplit(self.path).path.lstrip('/').partition('/')
        return (unquote(first), f'/{rest}') if unquote(first) in BEHAVIOURS else ('',
                                                                                  urlsplit(self.path).path)

    def fail(self, fault, q, chat, n, prompt):
        s = self.server
        if fault in ('401', '403', '404', '400'):
            return self.send(int(fault),
                             {'error': {'message': f"wrong: {self.headers.get('authorization')}",
                                        'code': 'some_code'}})
        if fault == 'quota':
            return self.send(429, {'error': {'message': 'no money left', 'code': 'insufficient_quota'}})
        if fault == 'filter':
            return self.send(400,
                             {'error': {'message': 'the filter does not like it', 'code': 'content_filter'}})
        if fault == 'max_tokens' and 'max_tokens' in q:
            return self.send(400,
                             {'error': {'message': "use 'max_completion_tokens' instead of 'max_tokens'",
                                        'code': 'unsupported_parameter'}})
        if fault == '429':
            return self.send(429, {'error': {'message': 'slow down'}}, {'retry-after': s.retry_after})
        if fault in ('500', '503'): return self.send(int(fault), {'error': {'message': 'not now'}})
        if fault == 'reset':
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            self.connection.close()
            return
        if fault == 'stall':
            s.over.wait(60)
            return
        if fault == 'not json': return self.bill(b'{"choices": [{"mess')
        if fault == 'html': return self.send(200, b'<html>busy</html>', {'content-type': 'text/html'})
        if fault == 'empty choices':
            return self.bill({'id': '1', 'object': 'chat.completion', 'created': 0, 'model': 'm',
                              'choices': []})
        if fault == 'n ignored' or s.single: n = 1
        time.sleep(s.delay)
        with s.lock:
            texts = [None if fault == 'null text' else s.write(prompt, next(s.count)) for _ in range(n)]
        value = completion(q, texts, chat, usage=fault != 'no usage')
        for c in value['choices']: c['finish_reason'] = 'content_filter' if fault == 'refusal' else 'stop'
        whole = json.dumps(value).encode()
        if fault == 'cut':
            self.head(200, len(whole), {})
            self.wfile.write(whole[:len(whole)//2])
            self.connection.close()
            return
        self.bill(whole)
        if fault not in ('null text', 'refusal'):
            with s.lock: s.delivered += texts

    def bill(self, value):
        with self.server.lock: self.server.billed += 1
        self.send(200, value)

    def head(self, status, length, headers):
        self.send_response(status)
        for k, v in {'content-type': 'application/json', 'content-length': str(length), **headers}.items():
            self.send_header(k, v)
        self.end_headers()

    def send(self, status, value, headers={}):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        try:
            self.head(status, len(body), headers)
            self.wfile.write(body)
        except OSError: pass # the client was killed

    def log_message(self, *args): pass


def story(prompt, i):
    "A text that names what the prompt names, and is like no other."
    if 'The name "' not in prompt: return f'Nobody is named in story {i}.'
    name = prompt.split('The name "')[1].split('"')[0]
    return f'{name} is what story number {i} of all the {i*7919} stories is about.'


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def at(self, behaviour): # its address
        assert behaviour in BEHAVIOURS, behaviour
        return f'http://127.0.0.1:{self.server_address[1]}/{quote(behaviour)}/v1'

    def asked_at(self, behaviour): # the requests
        return [q for p, q, _ in self.asked if unquote(p).startswith(f'/{behaviour}/')]


def start(fault=lambda i, q: '', write=None, retry_after='0', delay=0., single=False):
    "A running server; `fault(i, request)` names what goes wrong with request number i, or ''."
    s = Server(('127.0.0.1', 0), API)
    s.fault, s.retry_after, s.delay, s.single = fault, retry_after, delay, single
    s.write = write or story
    s.lock, s.over, s.count = threading.Lock(), threading.Event(), itertools.count()
    s.asked, s.delivered, s.billed = [], [], 0
    threading.Thread(target=s.serve_forever, daemon=True).start()
    s.url = f'http://127.0.0.1:{s.server_address[1]}/v1'
    return s


def stop(s):
    s.over.set()
    s.shutdown()
    s.server_close()


def sometimes(share, kinds=PASSING, seed=0):
    "Faults of all kinds, with this share of all requests."
    rng = random.Random(seed)
    return lambda i, q: rng.choice(kinds) if rng.random() < share else ''
