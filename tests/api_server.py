"""A server that speaks the OpenAI API, makes every kind of fault, and counts what it delivered."""
import http.server, itertools, json, random, socket, struct, threading, time

PASSING = ('429', '500', '503', 'reset', 'cut', 'not json', 'html', 'empty choices', 'null text')


class API(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        s, body = self.server, self.rfile.read(int(self.headers['content-length']))
        q = json.loads(body)
        with s.lock:
            s.asked.append((self.path, q, self.headers.get('authorization')))
            fault = s.fault(len(s.asked), q)
        if fault in ('401', '403', '404', '400'): return self.send(int(fault), {'error': {'message': f"wrong: {self.headers.get('authorization')}", 'code': 'some_code'}})
        if fault == 'quota': return self.send(429, {'error': {'message': 'no money left', 'code': 'insufficient_quota'}})
        if fault == 'filter': return self.send(400, {'error': {'message': 'the filter does not like it', 'code': 'content_filter'}})
        if fault == 'max_tokens' and 'max_tokens' in q: return self.send(400, {'error': {'message': "use 'max_completion_tokens' instead of 'max_tokens'", 'code': 'unsupported_parameter'}})
        if fault == '429': return self.send(429, {'error': {'message': 'slow down'}}, {'retry-after': s.retry_after})
        if fault in ('500', '503'): return self.send(int(fault), {'error': {'message': 'not now'}})
        if fault == 'reset':
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); self.connection.close(); return
        if fault == 'stall': s.over.wait(60); return
        if fault == 'not json': return self.send(200, b'{"choices": [{"mess')
        if fault == 'html': return self.send(200, b'<html>busy</html>', {'content-type': 'text/html'})
        if fault == 'empty choices': return self.send(200, {'id': '1', 'object': 'chat.completion', 'created': 0, 'model': 'm', 'choices': []})
        chat, n = self.path.endswith('/chat/completions'), q.get('n', 1)
        if fault == 'n ignored' or s.single: n = 1
        prompt = q['messages'][0]['content'] if chat else q['prompt']
        time.sleep(s.delay)
        with s.lock: texts = [None if fault == 'null text' else s.write(prompt, next(s.count)) for _ in range(n)]
        reason = 'content_filter' if fault == 'refusal' else 'stop'
        choices = [{'index': i, 'finish_reason': reason, **({'message': {'role': 'assistant', 'content': t}} if chat else {'text': t})} for i, t in enumerate(texts)]
        value = {'id': '1', 'object': 'x', 'created': 0, 'model': q['model'], 'choices': choices, 'usage': {'prompt_tokens': 10, 'completion_tokens': 5*n, 'total_tokens': 10 + 5*n}}
        if fault == 'no usage': del value['usage']
        whole = json.dumps(value).encode()
        if fault == 'cut': self.head(200, len(whole), {}); self.wfile.write(whole[:len(whole)//2]); self.connection.close(); return
        self.send(200, whole)
        if fault not in ('null text', 'refusal'):
            with s.lock: s.delivered += texts

    def head(self, status, length, headers):
        self.send_response(status)
        for k, v in {'content-type': 'application/json', 'content-length': str(length), **headers}.items(): self.send_header(k, v)
        self.end_headers()

    def send(self, status, value, headers={}):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        try: self.head(status, len(body), headers); self.wfile.write(body)
        except OSError: pass # the client was killed

    def log_message(self, *args): pass


def story(prompt, i):
    "A text that names what the prompt names, and is like no other."
    if 'The name "' not in prompt: return f'Nobody is named in story {i}.'
    name = prompt.split('The name "')[1].split('"')[0]
    return f'{name} is what story number {i} of all the {i*7919} stories is about.'


def start(fault=lambda i, q: '', write=None, retry_after='0', delay=0., single=False):
    "A running server; `fault(i, request)` names what goes wrong with request number i, or ''."
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), API)
    s.daemon_threads = True
    s.fault, s.retry_after, s.delay, s.single = fault, retry_after, delay, single
    s.write = write or story
    s.lock, s.over, s.count, s.asked, s.delivered = threading.Lock(), threading.Event(), itertools.count(), [], []
    threading.Thread(target=s.serve_forever, daemon=True).start()
    s.url = f'http://127.0.0.1:{s.server_address[1]}/v1'
    return s


def stop(s): s.over.set(); s.shutdown(); s.server_close()


def sometimes(share, kinds=PASSING, seed=0):
    "Faults of all kinds, with this share of all requests."
    rng = random.Random(seed)
    return lambda i, q: rng.choice(kinds) if rng.random() < share else ''
