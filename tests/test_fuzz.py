"""Mutated files of every kind that kdnb reads: each is read, or refused in one sentence, and nothing outside a scratch folder changes."""
import hashlib, json, math, random, shutil
from copy import deepcopy
from dataclasses import asdict

import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save_file

from kdnb.apps.versions import summary, undo_teaching
from kdnb.data.counterfact import read_counterfact
from kdnb.data.paper_files import read_ecbd, read_entity_inferences
from kdnb.data.definitions import read_definitions
from kdnb.data.dataset import load_dataset
from kdnb.data.entity_files import read_probes
from kdnb.data.transfer_sets import read_transfer_sets
from kdnb.experiments.results import as_json, collect
from kdnb.core.errors import KdnbError
from kdnb.core.files import write_json

TOTAL = 10_000 # mutated inputs, over all readers
VALUES = (None, True, False, 0, -1, 1, 2**70, 1.5, -0.0, float('nan'), float('inf'), 1e308, '', ' ', 'x', '../../victim', '/etc/passwd', '\ud83d', '\x00', 'Ａ', '中文', 'é'*40,
          '<img src=x onerror=alert(1)>', '{name.__class__}', '$x$', [], {}, [[]], [None], [1, 2], ['a', 'b'], {'a': 1}, [[1, 2]]*3, '9'*30)
BYTES = (b'', b'\0', b'\xff\xfe', b'\xef\xbb\xbf', b'"', b'{', b'}', b'[[[[[[', b'\n', b'\r\n', b',', b';', b'# ', b'```\n', b'---\n', b'\\ud800', b'NaN', b'1e999', b'null', b'../../victim', b'\xf0\x9f\x98\x80', b'\xc3',
         b'|', b'"""', b'9'*400, b'<think>')


def nodes(value, path=()):
    "The places of all values inside of a JSON value."
    yield path
    if isinstance(value, (dict, list)):
        for k in list(value) if isinstance(value, dict) else range(len(value)): yield from nodes(value[k], (*path, k))


def put(value, path, new, how):
    if not path: return new
    at = value
    for k in path[:-1]: at = at[k]
    if how == 'remove': del at[path[-1]]
    elif how == 'add' and isinstance(at, dict): at['colour'] = new
    elif how == 'twice' and isinstance(at, list): at.append(at[path[-1]])
    else: at[path[-1]] = new
    return value


def mutate_json(rng, data):
    "One of the JSON values in `data` (a document, or one a line) with some places changed."
    lines = data.decode().splitlines() if data.count(b'\n') > 1 and data.startswith(b'{"') else [data.decode()]
    i = rng.randrange(len(lines))
    value = json.loads(lines[i])
    for _ in range(rng.randint(1, 3)):
        places = list(nodes(value))
        value = put(value, rng.choice(places), deepcopy(rng.choice(VALUES)), rng.choice(('set', 'set', 'set', 'remove', 'add', 'twice')))
    lines[i] = json.dumps(value)
    return '\n'.join(lines).encode()


def mutate_bytes(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        a = rng.randrange(len(data) + 1); b = min(len(data), a + rng.choice((0, 1, 2, 8, 64)))
        how = rng.randrange(5)
        if how == 0: data[a:b] = rng.choice(BYTES)
        elif how == 1: data[a:a] = rng.choice(BYTES)
        elif how == 2: data[a:a] = data[a:b]*rng.choice((1, 2, 50))
        elif how == 3: del data[a:]
        elif data: data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


# what is read: name -> (file that is mutated, the other files around it, function of the folder)
def entity_rows():
    from kdnb.data.dataset import load_dataset
    return [{k: v for k, v in asdict(e).items() if v not in (None, '', ())} for e in load_dataset().entities[:2]]


def lines(*rows): return ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows).encode()


MARKDOWN = '---\na: b\n---\nHello.\n# Words\nAn introduction.\n\n## F#\n**F#** is a [language](x).\n\n```\n# code\n```\n### History\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n## 维尔莫拉\n维尔莫拉是喜剧。\n'.encode()
TABLE = 'Name;Definition;Aliases;Source\nVelmora;"Velmora is a ""comedy""; it is new.";Vel;web\nZorbel;Zorbel is a film.;;\n;;;\n'.encode()
SET = {'entity': 'Velmora', 'continuations': [{'text': 'Velmora is known.', 'mention': [0, 7], 'prompt': 'p', 'rule': ''}], 'definition': 'Velmora is a comedy.', 'made_by': {'n': 1}, 'tries': 2, 'dropped': {'duplicate': 1}, 'spent': {'calls': 1}}
REPLY = {'key': '0123456789abcdef', 'texts': ['Velmora is known.'], 'refused': [], 'calls': 1, 'tokens_in': 3, 'tokens_out': 4, 'cost': 0.1, 'tries': 1, 'seconds': .1, 'when': 1}
PAPER = {'ex_id': 'show_1', 'ent_str': 'Velmora', 'definition': 'Velmora is a <extra_id_0>.', 'def_target': '<extra_id_0> comedy <extra_id_1>', 'qid': ['show (Q1)'], 'augmented_probes': ['Velmora is funny.'], 'label': 'funny',
         'probe_sentences': {'template_0': {'probe_sentence': 'People find Velmora <extra_id_0>.', 'label': 'funny', 'labels': ['<extra_id_0> funny <extra_id_1>', '<extra_id_0> sad <extra_id_1>']}}}
FACT = {'case_id': 1, 'requested_rewrite': {'prompt': '{} is in', 'subject': 'Velmora', 'relation_id': 'P1', 'target_new': {'str': 'Rome'}, 'target_true': {'str': 'Paris'}}, 'paraphrase_prompts': ['Where is Velmora? In'], 'neighborhood_prompts': ['Zorbel is in']}
PROMPT = {'mine': {'text': 'Say of {name}: {definition}', 'chat': 'Write about {name}.', 'starts': ['{name} is'], 'vary': ['a', 'b'], 'lines': 1, 'about': 'x', 'version': 1}}
CASE = {'target': [{'entity': 'Velmora', 'key': 'Velmora', 'definition_bpb': 1.5, 'probes': [{'correct': True, 'answer': 'a', 'bits': 2.5, 'bytes': 3, 'kind': 'explicit'}], 'neighbors': [], 'neighbors_plus': [], 'open_ended': {'correct': False, 'text': 'x'}}],
        'specificity': [{'correct': True, 'answer': 'a', 'bits': 1., 'bytes': 2}, None], 'other_entities': [], 'entities': ['Velmora'], 'texts': {'after_mention': 2}, 'losses': [1., .5], 'seconds_edit': 1.5, 'seconds_evaluate': 1., 'peak_memory_gib': 1., 'key': 'x'}
PARAMS = {'lm': 'llama', 'method': 'distill', 'preset': 'default', 'regime': 'single', 'unit': 'accuracy', 'settings': {}, 'seed': 0, 'lm_sha256': 'x', 'entities': ['Velmora']}
EDIT = {'method': 'distill', 'entities': ['Velmora'], 'lm': 'llama', 'base': 'x', 'context': {}, 'find_above': None, 'settings': {'lr': 1.}, 'losses': [1., .5], 'seconds': 1., 'peak_memory_gib': 1., 'after': [], 'texts': {}, 'adapter': {'a.weight': [2., False]}}
NOTE = {'lm': 'llama', 'lm_sha256': 'x', 'base': 'llama', 'separate_adapters': False, 'versions': ['0123456789ab'], 'files': {'versions/0123456789ab': 'folder', 'README.md': hashlib.sha256(b'card').hexdigest()}}


def make_edit(folder):
    save_file({'base_model.model.a.lora_A.weight': torch.ones(2, 3), 'base_model.model.a.lora_B.weight': torch.ones(4, 2)}, folder/'adapter_model.safetensors')
    write_json(folder/'edit.json', EDIT)


def make_shelf(folder):
    for name in ('0123456789ab', 'edits/0123456789ab'):
        (folder/name).mkdir(parents=True)
        make_edit(folder/name)


def make_taught(folder):
    (folder/'README.md').write_text('card')
    version = folder/'versions'/'0123456789ab'
    version.mkdir(parents=True)
    (version/'definitions.jsonl').write_bytes(lines(*entity_rows()))
    for k in ('base', 'prepend', 'after'): write_json(version/f'{k}.json', {**CASE, 'specificity': [CASE['specificity'][0]]})
    write_json(folder/'kdnb.json', NOTE)


def readers():
    from kdnb.transfer.api_costs import Replies
    from kdnb.edits.storage import load_edit
    from kdnb.core.jsonl import repair_jsonl
    from kdnb.core.records import FolderRecord
    from kdnb.transfer.prompts import read_prompts
    from kdnb.edits.routing import AdapterRouter
    rows = entity_rows()
    probe = {'prompt': 'The capital of France is', 'gold': 'Paris', 'candidates': ['Paris', 'Rome'], 'topic': 'x'}
    return {
        'entities': ('x.jsonl', lines(*rows), None, lambda d: load_dataset(d/'x.jsonl').sha256),
        'probes': ('x.jsonl', lines(probe, probe), None, lambda d: read_probes(d/'x.jsonl')),
        'definitions, Markdown': ('x.md', MARKDOWN, None, lambda d: read_definitions(d/'x.md')),
        'definitions, table': ('x.csv', TABLE, None, lambda d: read_definitions(d/'x.csv')),
        'definitions, a folder': ('x.jsonl', lines(*rows), lambda d: (d/'y.md').write_bytes(b'# Quint\nQuint is new.\n'), lambda d: read_definitions(d)),
        'transfer sets': ('x.jsonl', lines(SET, SET), None, lambda d: [t.key for t in read_transfer_sets(d/'x.jsonl').values()]),
        'repair': ('x.jsonl', lines(SET, SET), None, lambda d: repair_jsonl(d/'x.jsonl', 'entity')),
        'replies': ('x.jsonl', lines(REPLY, REPLY), None, lambda d: Replies(d/'x.jsonl').total),
        'prompts': ('x.json', json.dumps(PROMPT).encode(), None, lambda d: read_prompts(d/'x.json')),
        'edit': ('edit.json', json.dumps(EDIT).encode(), make_edit, lambda d: load_edit(d).id),
        "an edit's numbers": ('adapter_model.safetensors', None, make_edit, lambda d: load_edit(d).id),
        'shelf': ('router.json', b'{"Velmora": "0123456789ab", "Zorbel": "edits/0123456789ab"}', make_shelf, lambda d: AdapterRouter.load(d)),
        'a folder that was taught': ('kdnb.json', json.dumps(NOTE).encode(), make_taught, lambda d: (summary(d), undo_teaching(d))),
        'a stage of a teaching': ('versions/0123456789ab/after.json', json.dumps({**CASE, 'specificity': [CASE['specificity'][0]]}).encode(), make_taught, lambda d: summary(d)),
        'record': ('kdnb.json', json.dumps(NOTE).encode(), None, lambda d: FolderRecord.read(d).delete(*FolderRecord.read(d).files)),
        'parameters of a run': ('params.json', json.dumps(PARAMS).encode(), lambda d: write_json(d/'case-a.json', CASE), lambda d: as_json(collect([d]).iloc[0])),
        'a case of a run': ('case-a.json', json.dumps(CASE).encode(), lambda d: write_json(d/'params.json', PARAMS), lambda d: as_json(collect([d]).iloc[0])),
        'Entity Inferences': ('x.json', lines(PAPER, {**PAPER, 'ex_id': 'show_2'}), None, lambda d: read_entity_inferences(d/'x.json')),
        'ECBD': ('x.json', lines(PAPER, {**PAPER, 'ex_id': 'show_2'}), None, lambda d: read_ecbd(d/'x.json')),
        'CounterFact': ('x.json', json.dumps([FACT, FACT]).encode(), None, lambda d: read_counterfact(d/'x.json')),
    }


def snapshot(folder): # path -> content
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b'' for p in sorted(folder.rglob('*'))}


@pytest.mark.slow
@pytest.mark.parametrize('name', ('entities', 'probes', 'definitions, Markdown', 'definitions, table', 'definitions, a folder', 'transfer sets', 'repair', 'replies', 'prompts', 'edit', "an edit's numbers", 'shelf',
                                  'a folder that was taught', 'a stage of a teaching', 'record', 'parameters of a run', 'a case of a run', 'Entity Inferences', 'ECBD', 'CounterFact'))
def test_a_mutated_file_is_read_or_refused(tmp_path, name):
    found = readers()
    file, data, make, read = found[name]
    world = tmp_path/'world'
    scratch, count = world/'deep'/'scratch', [0, 0]
    for p, text in ((world/'victim'/'thesis.txt', 'years of work'), (world/'deep'/'victim', 'a file'), (world/'victim'/'edit.json', '{}')): p.parent.mkdir(parents=True, exist_ok=True); p.write_text(text)
    outside = snapshot(world)

    @settings(max_examples=math.ceil(TOTAL/len(found)), deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**63))
    def one(seed):
        rng = random.Random(seed)
        scratch.mkdir()
        try:
            if make: make(scratch)
            path = scratch/file
            good = data if data is not None else path.read_bytes()
            as_json = file.endswith(('.json', '.jsonl')) and rng.random() < .6
            path.write_bytes((mutate_json if as_json else mutate_bytes)(rng, good))
            count[0] += 1
            try: read(scratch)
            except KdnbError as e:
                count[1] += 1
                assert str(e).strip() and 'Traceback' not in str(e)
                str(e).encode('utf-8')
        finally: shutil.rmtree(scratch)
        assert snapshot(world) == outside
    one()
    assert count[0] >= math.ceil(TOTAL/len(found)) and 0 < count[1] < count[0], count # some were refused, and some were read


def test_every_reader_reads_what_is_whole(tmp_path):
    for name, (file, data, make, read) in readers().items():
        folder = tmp_path/name.replace(' ', '_')
        folder.mkdir()
        if make: make(folder)
        if data is not None: (folder/file).write_bytes(data)
        read(folder)
