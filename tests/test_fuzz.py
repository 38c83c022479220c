"""Mutated files of every kind that kdnb reads are read, or refused in one sentence.

Nothing outside a scratch folder changes.
"""
import hashlib, json, math, random, shutil
from copy import deepcopy
from dataclasses import asdict
from typing import Callable, NamedTuple

import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save_file

from kdnb.apps.versions import read_taught, summary, undo_teaching
from kdnb.data.counterfact import read_counterfact
from kdnb.data.paper_files import read_ecbd, read_entity_inferences
from kdnb.data.definitions import read_definitions
from kdnb.data.dataset import load_dataset
from kdnb.data.entity_files import read_probes
from kdnb.data.transfer_sets import read_transfer_sets
from kdnb.experiments.results import as_json, collect
from kdnb.core.errors import KdnbError
from kdnb.core.files import write_json
from kdnb.reporting.teach_page import teach_page
from teachings import CAPITAL, exam_of, said, write_version

TOTAL = 10_000 # mutated inputs of all readers together
VALUES = (
    None, True, False, 0, -1, 1, 2**70, 1.5, -0.0, float('nan'), float('inf'), 1e308, '', ' ', 'x',
    '../../victim', '/etc/passwd', '\ud83d', '\x00', 'Ａ', '中文', 'é'*40,
    '<img src=x onerror=alert(1)>', '{name.__class__}', '$x$', [], {}, [[]], [None], [1, 2],
    ['a', 'b'], {'a': 1}, [[1, 2]]*3, '9'*30)
BYTES = (
    b'', b'\0', b'\xff\xfe', b'\xef\xbb\xbf', b'"', b'{', b'}', b'[[[[[[', b'\n', b'\r\n', b',',
    b';', b'# ', b'```\n', b'---\n', b'\\ud800', b'NaN', b'1e999', b'null', b'../../victim',
    b'\xf0\x9f\x98\x80', b'\xc3', b'|', b'"""', b'9'*400, b'<think>')


def nodes(value, path=()):
    "Paths of all values inside a JSON value."
    yield path
    if isinstance(value, (dict, list)):
        for k in list(value) if isinstance(value, dict) else range(len(value)):
            yield from nodes(value[k], (*path, k))


def put(value, path, new, how):
    "The JSON value with the value at a path set to `new`, removed, repeated, or with a new field next to it."
    if not path: return new
    at = value
    for k in path[:-1]: at = at[k]
    if how == 'remove': del at[path[-1]]
    elif how == 'add' and isinstance(at, dict): at['colour'] = new
    elif how == 'twice' and isinstance(at, list): at.append(at[path[-1]])
    else: at[path[-1]] = new
    return value


def mutate_json(rng, data):
    "`data` with some places of one JSON value changed; data is a document, or has one value a line."
    is_lines = data.count(b'\n') > 1 and data.startswith(b'{"')
    lines = data.decode().splitlines() if is_lines else [data.decode()]
    i = rng.randrange(len(lines))
    value = json.loads(lines[i])
    for _ in range(rng.randint(1, 3)):
        places = list(nodes(value))
        place, new = rng.choice(places), deepcopy(rng.choice(VALUES))
        value = put(value, place, new, rng.choice(('set', 'set', 'set', 'remove', 'add', 'twice')))
    lines[i] = json.dumps(value)
    return '\n'.join(lines).encode()


def mutate_bytes(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        a = rng.randrange(len(data) + 1)
        b = min(len(data), a + rng.choice((0, 1, 2, 8, 64)))
        how = rng.randrange(5)
        if how == 0: data[a:b] = rng.choice(BYTES)
        elif how == 1: data[a:a] = rng.choice(BYTES)
        elif how == 2: data[a:a] = data[a:b]*rng.choice((1, 2, 50))
        elif how == 3: del data[a:]
        elif data: data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def entity_rows():
    filled = lambda e: {k: v for k, v in asdict(e).items() if v not in (None, '', ())}
    return [filled(e) for e in load_dataset().entities[:2]]


def lines(*rows): return ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows).encode()


MARKDOWN = '''---
a: b
---
Hello.
# Words
An introduction.

## F#
**F#** is a [language](x).

```
# code
```
### History
- one
- two

| a | b |
|---|---|
| 1 | 2 |

## 维尔莫拉
维尔莫拉是喜剧。
'''.encode()
TABLE = '''Name;Definition;Aliases;Source
Velmora;"Velmora is a ""comedy""; it is new.";Vel;web
Zorbel;Zorbel is a film.;;
;;;
'''.encode()
SET = {
    'entity': 'Velmora',
    'continuations': [{'text': 'Velmora is known.', 'mention': [0, 7], 'prompt': 'p', 'rule': ''}],
    'definition': 'Velmora is a comedy.',
    'made_by': {'n': 1},
    'tries': 2,
    'dropped': {'duplicate': 1},
    'spent': {'calls': 1}}
REPLY = {
    'key': '0123456789abcdef',
    'texts': ['Velmora is known.'],
    'refused': [],
    'calls': 1,
    'tokens_in': 3,
    'tokens_out': 4,
    'cost': 0.1,
    'tries': 1,
    'seconds': .1,
    'when': 1}
PAPER = {
    'ex_id': 'show_1',
    'ent_str': 'Velmora',
    'definition': 'Velmora is a <extra_id_0>.',
    'def_target': '<extra_id_0> comedy <extra_id_1>',
    'qid': ['show (Q1)'],
    'augmented_probes': ['Velmora is funny.'],
    'label': 'funny',
    'probe_sentences': {
        'template_0': {
            'probe_sentence': 'People find Velmora <extra_id_0>.',
            'label': 'funny',
            'labels': ['<extra_id_0> funny <extra_id_1>', '<extra_id_0> sad <extra_id_1>']}}}
FACT = {
    'case_id': 1,
    'requested_rewrite': {
        'prompt': '{} is in',
        'subject': 'Velmora',
        'relation_id': 'P1',
        'target_new': {'str': 'Rome'},
        'target_true': {'str': 'Paris'}},
    'paraphrase_prompts': ['Where is Velmora? In'],
    'neighborhood_prompts': ['Zorbel is in']}
PROMPT = {
    'mine': {
        'text': 'Say of {name}: {definition}',
        'chat': 'Write about {name}.',
        'starts': ['{name} is'],
        'vary': ['a', 'b'],
        'lines': 1,
        'about': 'x',
        'version': 1}}
CASE = {
    'target': [{
        'entity': 'Velmora',
        'key': 'Velmora',
        'definition_bpb': 1.5,
        'probes': [{'correct': True, 'answer': 'a', 'bits': 2.5, 'bytes': 3, 'kind': 'explicit'}],
        'neighbors': [],
        'neighbors_plus': [],
        'open_ended': {'correct': False, 'text': 'x'}}],
    'specificity': [{'correct': True, 'answer': 'a', 'bits': 1., 'bytes': 2}, None],
    'other_entities': [],
    'entities': ['Velmora'],
    'texts': {'after_mention': 2},
    'losses': [1., .5],
    'seconds_edit': 1.5,
    'seconds_evaluate': 1.,
    'peak_memory_gib': 1.,
    'key': 'x'}
PARAMS = {
    'lm': 'llama',
    'method': 'distill',
    'preset': 'default',
    'regime': 'single',
    'unit': 'accuracy',
    'settings': {},
    'seed': 0,
    'lm_sha256': 'x',
    'entities': ['Velmora']}
EDIT = {
    'method': 'distill',
    'entities': ['Velmora'],
    'lm': 'llama',
    'base': 'x',
    'context': {},
    'find_above': None,
    'settings': {'lr': 1.},
    'losses': [1., .5],
    'seconds': 1.,
    'peak_memory_gib': 1.,
    'after': [],
    'texts': {},
    'adapter': {'a.weight': [2., False]}}
NOTE = {
    'lm': 'llama',
    'lm_sha256': 'x',
    'base': 'llama',
    'separate_adapters': False,
    'versions': ['0123456789ab'],
    'files': {'versions/0123456789ab': 'folder', 'README.md': hashlib.sha256(b'card').hexdigest()}}


def make_edit(folder):
    A, B = torch.ones(2, 3), torch.ones(4, 2)
    tensors = {'base_model.model.a.lora_A.weight': A, 'base_model.model.a.lora_B.weight': B}
    save_file(tensors, folder/'adapter_model.safetensors')
    write_json(folder/'edit.json', EDIT)


def make_router(folder):
    for name in ('0123456789ab', 'edits/0123456789ab'):
        (folder/name).mkdir(parents=True)
        make_edit(folder/name)


def make_taught(folder):
    (folder/'README.md').write_text('card')
    e = load_dataset().entities[0]
    asked = [('question', f'What is {e.name}?', 0), ('verbatim', e.definition, 0), ('yours', 'Why?', None)]
    exam = exam_of(e, [e.definition.split()[-1]], asked)
    answers = [said('yes', True), said('no'), said('so')]
    write_version(folder/'versions'/'0123456789ab', [exam], [answers], [CAPITAL])
    write_json(folder/'kdnb.json', NOTE)


def taught_page(folder): return teach_page(read_taught(folder/'versions'/'0123456789ab')), summary(folder)


class Reader(NamedTuple):
    "A function that reads `file` of a folder, with the content that is mutated."
    file: str
    data: bytes | None # None: the file that `make` writes
    read: Callable
    make: Callable | None = None # writes the other files of the folder


def readers():
    from kdnb.transfer.api_costs import Replies
    from kdnb.edits.storage import load_edit
    from kdnb.core.jsonl import repair_jsonl
    from kdnb.core.records import FolderRecord
    from kdnb.transfer.prompts import read_prompts
    from kdnb.edits.routing import AdapterRouter
    rows, as_bytes = entity_rows(), lambda value: json.dumps(value).encode()
    probe = dict(prompt='The capital of France is', gold='Paris', candidates=['Paris', 'Rome'], topic='x')
    router = b'{"Velmora": "0123456789ab", "Zorbel": "edits/0123456789ab"}'
    two_rows = lines(PAPER, {**PAPER, 'ex_id': 'show_2'})
    other_file = lambda d: (d/'y.md').write_bytes(b'# Quint\nQuint is new.\n')
    delete_all = lambda d: FolderRecord.read(d).delete(*FolderRecord.read(d).files)
    first_row = lambda d: as_json(collect([d]).iloc[0])
    return {
        'entities': Reader('x.jsonl', lines(*rows), lambda d: load_dataset(d/'x.jsonl').sha256),
        'probes': Reader('x.jsonl', lines(probe, probe), lambda d: read_probes(d/'x.jsonl')),
        'definitions, Markdown': Reader('x.md', MARKDOWN, lambda d: read_definitions(d/'x.md')),
        'definitions, table': Reader('x.csv', TABLE, lambda d: read_definitions(d/'x.csv')),
        'definitions, a folder': Reader('x.jsonl', lines(*rows), read_definitions, other_file),
        'transfer sets': Reader(
            'x.jsonl', lines(SET, SET),
            lambda d: [t.key for t in read_transfer_sets(d/'x.jsonl').values()]),
        'repair': Reader('x.jsonl', lines(SET, SET), lambda d: repair_jsonl(d/'x.jsonl', 'entity')),
        'replies': Reader('x.jsonl', lines(REPLY, REPLY), lambda d: Replies(d/'x.jsonl').total),
        'prompts': Reader('x.json', as_bytes(PROMPT), lambda d: read_prompts(d/'x.json')),
        'edit': Reader('edit.json', as_bytes(EDIT), lambda d: load_edit(d).id, make_edit),
        "an edit's numbers": Reader(
            'adapter_model.safetensors', None, lambda d: load_edit(d).id, make_edit),
        'router': Reader('router.json', router, AdapterRouter.load, make_router),
        'a folder of kdnb teach': Reader(
            'kdnb.json', as_bytes(NOTE), lambda d: (summary(d), undo_teaching(d)), make_taught),
        'a version of kdnb teach': Reader(
            'versions/0123456789ab/taught.json', None, taught_page, make_taught),
        'the exams of a version': Reader(
            'versions/0123456789ab/exams.json', None, taught_page, make_taught),
        'a round of a version': Reader(
            'versions/0123456789ab/round-1.json', None, taught_page, make_taught),
        'record': Reader('kdnb.json', as_bytes(NOTE), delete_all),
        'parameters of a run': Reader(
            'params.json', as_bytes(PARAMS), first_row, lambda d: write_json(d/'case-a.json', CASE)),
        'a case of a run': Reader(
            'case-a.json', as_bytes(CASE), first_row, lambda d: write_json(d/'params.json', PARAMS)),
        'Entity Inferences': Reader('x.json', two_rows, lambda d: read_entity_inferences(d/'x.json')),
        'ECBD': Reader('x.json', two_rows, lambda d: read_ecbd(d/'x.json')),
        'CounterFact': Reader(
            'x.json', as_bytes([FACT, FACT]), lambda d: read_counterfact(d/'x.json'))}


def snapshot(folder):
    "Dict from the paths in a folder to the files' contents."
    content = lambda p: p.read_bytes() if p.is_file() else b''
    return {p.relative_to(folder).as_posix(): content(p) for p in sorted(folder.rglob('*'))}


@pytest.mark.slow
@pytest.mark.parametrize('name', (
    'entities', 'probes', 'definitions, Markdown', 'definitions, table',
    'definitions, a folder', 'transfer sets', 'repair', 'replies', 'prompts', 'edit',
    "an edit's numbers", 'router', 'a folder of kdnb teach', 'a version of kdnb teach',
    'the exams of a version', 'a round of a version', 'record', 'parameters of a run', 'a case of a run',
    'Entity Inferences', 'ECBD', 'CounterFact'))
def test_a_mutated_file_is_read_or_refused(tmp_path, name):
    file, data, read, make = readers()[name]
    world = tmp_path/'world'
    scratch = world/'deep'/'scratch'
    victims = {'victim/thesis.txt': 'years of work', 'deep/victim': 'a file', 'victim/edit.json': '{}'}
    for path, text in victims.items():
        (world/path).parent.mkdir(parents=True, exist_ok=True)
        (world/path).write_text(text)
    outside = snapshot(world)
    n_examples, n_inputs, n_refused = math.ceil(TOTAL/len(readers())), 0, 0

    @settings(
        max_examples=n_examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**63))
    def one(seed):
        nonlocal n_inputs, n_refused
        rng = random.Random(seed)
        scratch.mkdir()
        try:
            if make: make(scratch)
            path = scratch/file
            good = data if data is not None else path.read_bytes()
            is_json = file.endswith(('.json', '.jsonl')) and rng.random() < .6
            path.write_bytes((mutate_json if is_json else mutate_bytes)(rng, good))
            n_inputs += 1
            try: read(scratch)
            except KdnbError as e:
                n_refused += 1
                assert str(e).strip() and 'Traceback' not in str(e)
                str(e).encode('utf-8')
        finally: shutil.rmtree(scratch)
        assert snapshot(world) == outside
    one()
    assert n_inputs >= n_examples and 0 < n_refused < n_inputs, (n_inputs, n_refused)


def test_every_reader_reads_the_unchanged_file(tmp_path):
    for name, (file, data, read, make) in readers().items():
        folder = tmp_path/name.replace(' ', '_')
        folder.mkdir()
        if make: make(folder)
        if data is not None: (folder/file).write_bytes(data)
        read(folder)
