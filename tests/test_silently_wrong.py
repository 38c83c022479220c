"""Conditions that could silently give wrong numbers give the right ones, or one sentence."""

import json, math, shutil

import numpy as np
import pytest, torch
from zoo import odd_config
from kdnb.evaluation.answers import answer_question, choice_of, definition_bpb, evaluate, write_answers
from kdnb.evaluation.metrics import summarise
from kdnb.methods.distill import Distill
from kdnb.methods.examples import example
from kdnb.edits.edit import Adapter, Edit
from kdnb.edits.storage import load_edit
from kdnb.data.entities import Entity, Probe, Question
from kdnb.core.errors import KdnbError
from kdnb.core.files import read_json, write_json
from kdnb.methods.finetune import FineTune
from kdnb.transfer.generator import LMGenerator, make_transfer_set
from kdnb.models.forward import logits_at, token_logprobs
from kdnb.models.generation import generate
from kdnb.models.layer_cache import states_below
from kdnb.models.model import LM, check_length, load_lm
from kdnb.models.scoring import score_candidates, score_spans
from kdnb.methods.mend import practice_pairs
from kdnb.methods.locating import contexts
from kdnb.methods.memit import Memit
from kdnb.methods.rome import Rome
from kdnb.evaluation.tracing import trace
from kdnb.core.text import find_mention
from kdnb.data.transfer_sets import Continuation, TransferSet

ENTITY = Entity(
    'Velmora', 'Velmora is a comedy about two bakers in a small town.',
    probes=(
        Probe('Velmora is a', 'comedy', ('comedy', 'river'), 'explicit'),
        Probe('In Velmora they sell', 'bread', ('bread', 'cars and boats'), 'indirect')),
    neighbors=(Probe('A river is a', 'river', ('comedy', 'river'), 'neighbors'),),
    question=Question('What is Velmora about?', ('bakers',)))
TEXTS = ['Velmora is what people in the town watch.', 'Last week Velmora was about a cake.']
SETS = {
    'Velmora': TransferSet('Velmora', tuple(Continuation(t, find_mention(t, ENTITY.names)) for t in TEXTS))}


def load(path):
    return load_lm(str(path), device='cpu')


def weights(lm):
    return {n: p.clone() for n, p in lm.model.state_dict().items()}


# A tokenizer that puts a token after each text


@pytest.mark.parametrize('with_end, without', (('llama_eos', 'llama'), ('llama_begin_end', 'llama_bos')))
def test_a_tokenizer_that_adds_a_token_after_a_text_gives_the_same_answers(zoo, with_end, without, ds):
    a, b = load(zoo(with_end)), load(zoo(without))
    text = 'Velmora is a comedy.'
    assert a.tokenizer(text).input_ids == [*b.tokenizer(text).input_ids, a.tokenizer.eos_token_id]
    assert a.n_after == 1 and b.n_after == 0 and a.sha256 == b.sha256
    for t in (text, 'a', 'a<end>', 'a<end><end>', '   ', 'Straße 😀'):
        assert a.encode(t) == b.encode(t)
        assert a.encode_with_offsets(t) == b.encode_with_offsets(t)
        assert a.encode(t, special=False) == b.encode(t, special=False)
    probes = [*ENTITY.probes, *ds.specificity[:3]]
    prompts, candidates = [p.prompt for p in probes], [p.candidates for p in probes]
    assert score_candidates(a, prompts, candidates) == score_candidates(b, prompts, candidates)
    spans = lambda lm: score_spans(lm, ['Velmora is a'], ['comedy about bakers'], [' '])
    assert spans(a) == spans(b)
    for temperature, n in ((0, 1), (1.0, 3)):
        write = lambda lm: generate(lm, [text[:-1], 'The'], n, 12, temperature)
        assert write(a) == write(b)
    for where in ('after_mention', 'all_tokens'):
        for c in SETS['Velmora'].continuations:
            assert example(a, c, ENTITY.definition, where) == example(b, c, ENTITY.definition, where)
    assert definition_bpb(a, ENTITY) == definition_bpb(b, ENTITY)
    results = lambda lm: evaluate(lm, [ENTITY], ds.specificity[:5], ds.entities[:1])
    assert results(a) == results(b)


@pytest.mark.parametrize(
    'method', (Distill(steps=3), FineTune(steps=3), Rome(tokens=400, steps=3), Memit(tokens=400, steps=3)))
def test_the_edit_is_the_same_with_a_tokenizer_that_adds_a_token_after_a_text(
        zoo, method, tmp_path, monkeypatch):
    monkeypatch.setenv('KDNB_CACHE', str(tmp_path))
    a, b = load(zoo('llama_eos')), load(zoo('llama'))
    one = method(a, [ENTITY], SETS)
    shutil.rmtree(tmp_path)
    other = method(b, [ENTITY], SETS)
    assert one.losses == other.losses and one.base == other.base
    for n in {*one.adapter}:
        assert torch.equal(one.adapter[n].B, other.adapter[n].B)
    for n in {*one.tensors}:
        assert torch.equal(one.tensors[n], other.tensors[n])
    assert [x.ids for x, _ in practice_pairs(a, [ENTITY])] == [x.ids for x, _ in practice_pairs(b, [ENTITY])]
    assert contexts(a) == contexts(b)
    left, right = (trace(lm, 'Velmora is a', 'Velmora', 'comedy', samples=2) for lm in (a, b))
    assert left.tokens == right.tokens and torch.equal(left.effects, right.effects)
    texts = lambda lm: make_transfer_set(lm, ENTITY, n=2, rounds=1, drop=()).continuations
    assert texts(a) == texts(b)


def test_the_tokenizer_is_called_on_texts_in_two_places():
    import re
    from conftest import ROOT

    call = re.compile(r'\b(tokenizer|tok)(\(|\.(encode|tokenize|batch_encode_plus|encode_plus|__call__)\()')
    lines = [(p.name, l.strip()) for p in (ROOT/'kdnb').rglob('*.py') for l in p.read_text().splitlines()]
    found = [(name, l) for name, l in lines if call.search(l)]
    assert [f for f, l in found] == ['model.py']*3 # encode, encode_with_offsets and n_after
    assert all('self.tokenizer(' in l for _, l in found)


# A model's own settings of generation

OTHER = dict(
    repetition_penalty=5.0, num_beams=3, no_repeat_ngram_size=1, max_length=3, min_length=30,
    length_penalty=2.0, suppress_tokens=list(range(5, 300)), begin_suppress_tokens=[7],
    forced_eos_token_id=3, forced_bos_token_id=4, bad_words_ids=[[9]], stop_strings=['e', 'a'],
    return_dict_in_generate=True, output_scores=True, do_sample=True, temperature=0.1, top_k=1,
    penalty_alpha=0.6, use_cache=False, encoder_repetition_penalty=3.0,
    exponential_decay_length_penalty=[1, 2.0], guidance_scale=2.0, prompt_lookup_num_tokens=3)
GREEDY = ['Velmora is a comedy', 'The town of'], dict(temperature=0, max_new_tokens=10)


def said(lm):
    sampled = generate(lm, GREEDY[0], 3, max_new_tokens=8, seed=4, top_p=0.9)
    return generate(lm, GREEDY[0], **GREEDY[1]), sampled


@pytest.mark.parametrize('change', [
    *({k: v} for k, v in OTHER.items()), OTHER, dict(num_return_sequences=4, num_beams=4),
    dict(cache_implementation='static')], ids=str)
def test_a_models_own_generation_settings_have_no_effect(zoo, tmp_path, change):
    folder = shutil.copytree(zoo('llama'), tmp_path/'lm')
    own = read_json(folder/'generation_config.json')
    write_json(folder/'generation_config.json', {**own, **change})
    lm = load(folder)
    before, config = lm.model.generation_config.to_dict(), lm.model.generation_config
    assert said(lm) == said(load(zoo('llama')))
    # a merged model would be saved with it
    assert lm.model.generation_config is config and config.to_dict() == before


def test_the_settings_of_a_model_come_back_when_it_is_interrupted(tiny, monkeypatch):
    config = tiny.model.generation_config

    def stop(**kw):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny.model, 'generate', stop)
    with pytest.raises(KeyboardInterrupt):
        generate(tiny, ['The'])
    assert tiny.model.generation_config is config


def test_a_text_ends_at_each_of_the_models_end_tokens_and_at_the_tokenizers(zoo, tmp_path):
    folder = shutil.copytree(zoo('llama'), tmp_path/'lm')
    lm = load(folder)
    prompt, how = GREEDY[0][0], GREEDY[1]
    ids = lm.encode(prompt)
    written = lm.model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False)[0].tolist()
    whole = written[len(ids):]
    for k in (1, 4):
        write_json(folder/'generation_config.json', dict(eos_token_id=[699, whole[k], 698]))
        got = generate(load(folder), [prompt, 'A much longer prompt of many more words'], **how)
        assert got[0][0] == lm.tokenizer.decode(whole[:whole.index(whole[k])])
    write_json(folder/'generation_config.json', dict(eos_token_id=699))
    lm = load(folder)
    lm.tokenizer.eos_token = lm.tokenizer.convert_ids_to_tokens(whole[2])
    assert generate(lm, [prompt], **how)[0][0] == lm.tokenizer.decode(whole[:whole.index(whole[2])])


@pytest.mark.parametrize('text', (
    '{"temperature": "hot"}', '{"eos_token_id": "x"}', '{"eos_token_id": [1, null, true]}',
    '{"num_beams": -1}', '[]', '{', '{"watermarking_config": 3}',
    '{"cache_config": 3, "max_length": "many"}',
    '{"do_sample": false, "temperature": 0.5, "num_return_sequences": 7}'))
def test_invalid_generation_settings_have_no_effect(zoo, tmp_path, text):
    folder = shutil.copytree(zoo('llama'), tmp_path/'lm')
    (folder/'generation_config.json').write_text(text)
    assert said(load(folder)) == said(load(zoo('llama')))


# Scores that are not finite


def spoil(lm, value=torch.nan, block=-1):
    "Makes the scores of a model no numbers, from a weight of a block on."
    from kdnb.models.layer_cache import blocks_of

    [p for p in blocks_of(lm.model)[block].parameters() if p.ndim > 1][-1].data.fill_(value)
    return lm


@pytest.mark.parametrize('name', ('llama', 'gpt2'))
def test_a_broken_model_gives_no_correct_answer_and_marks_its_rows(zoo, ds, name, tmp_path):
    lm = spoil(load(zoo(name)))
    assert all(math.isnan(s) for s in score_candidates(lm, ['The town is'], [['a', 'b']])[0])
    res = evaluate(lm, [ENTITY], ds.specificity[:6], ds.entities[:1])
    t = res['target'][0]
    rows = [*t['probes'], *t['neighbors'], *t['neighbors_plus'], *res['specificity'], *res['other_entities']]
    assert rows and not any(r['correct'] for r in rows)
    assert all(r['finite'] is False and r['answer'] is None for r in rows)
    assert not any(r['written'] for r in [*t['probes'], *t['neighbors'], *t['neighbors_plus']])
    assert t['open_ended'] == dict(correct=False, text='', finite=False)
    write_json(tmp_path/'case.json', res)
    again = json.loads(
        (tmp_path/'case.json').read_text(), parse_constant=lambda c: pytest.fail(f'{c} is no JSON'))
    assert again['target'][0]['probes'][0]['bits'] is None
    for case in (res, again):
        s = summarise([case, case])
        for k in ('target', 'specificity', 'target_open_ended', 'written_neighbors'):
            assert s[k].value == 0, k
        assert s['answer_bpb'].value == s['definition_bpb'].value == math.inf
        assert str(s['target']) == '0.0 [0.0, 0.0]'


def test_the_results_of_a_sound_model_have_no_such_field(tiny, ds):
    res = evaluate(tiny, [ENTITY], ds.specificity[:6], ds.entities[:1])
    assert 'finite' not in json.dumps(res)


def test_a_score_that_is_not_finite_is_never_correct():
    nan, inf = math.nan, math.inf
    for scores in ([nan, nan], [nan, -1.0], [-1.0, nan], [inf, -1.0], [-inf, -inf], [inf, inf]):
        assert choice_of(scores) is None
    assert choice_of([-inf, -3.0, -2.0]) == 2 and choice_of([-1.0, -inf]) == 0


def test_a_row_without_a_finite_score_counts_as_an_infinite_loss():
    def case(name, *bits, correct=True):
        probes = [dict(kind='explicit', bits=b, bytes=4, tokens=2, correct=correct) for b in bits]
        target = dict(
            entity=name, key=name, definition_bpb=1.0, probes=probes, neighbors=[], neighbors_plus=[],
            open_ended=None)
        specificity = [dict(bits=b, bytes=4, tokens=2, correct=True) for b in bits]
        return dict(target=[target], specificity=specificity, other_entities=[])

    cases = lambda bits: [case(name, bits, bits) for name in 'abc']
    base, front = cases(3.0), cases(1.0)
    for broken in (None, math.nan, math.inf):
        edited = [case('a', 2.0, 2.0), case('b', 2.0, broken), case('c', 2.0, 2.0)]
        s = summarise(edited, unit='perplexity')
        assert s['target'].value == s['specificity'].value == s['answer_bpb'].value == math.inf
        assert s['target'].n == 3
        # some bootstrap samples have finite cases only
        assert s['target'].low == pytest.approx(2**(2/2)) and s['target'].high == math.inf
        s = summarise(edited, base, front, unit='perplexity')
        assert s['gap_closed'].value == -math.inf and s['specificity_change'].value == math.inf
        broken_base = [case('a', 2.0, broken), case('b', 2.0, 2.0), case('c', 2.0, 2.0)]
        s = summarise(base, broken_base, front, unit='perplexity')
        assert s['gap_closed'] is None
    s = summarise([case('a', 2.0, 2.0), case('b', 2.0, 3.0)], unit='perplexity')
    for k in ('target', 'specificity', 'answer_bpb'):
        assert math.isfinite(s[k].low) and math.isfinite(s[k].high)


def test_generation_stops_at_scores_that_are_not_finite_with_a_warning(zoo, capsys):
    lm = load(zoo('llama'))
    want, three = (generate(lm, ['The town', 'A'], temperature=0, max_new_tokens=n) for n in (6, 3))
    calls, real = [], lm.model.forward

    def forward(*a, **k): # the first row is broken from the fourth step on
        out = real(*a, **k)
        calls.append(1)
        if len(calls) > 3:
            out.logits[0] = torch.nan
        return out

    lm.model.forward = forward
    for temperature in (0, 1.0):
        calls.clear()
        broken = []
        got = generate(lm, ['The town', 'A'], temperature=temperature, max_new_tokens=6, broken=broken)
        assert broken == [0]
        if not temperature:
            assert got[1] == want[1] and got[0] == three[0]
    calls.clear()
    capsys.readouterr()
    generate(lm, ['The town', 'A'], temperature=0, max_new_tokens=6)
    assert 'not finite numbers' in capsys.readouterr().err


def test_the_answer_of_a_broken_model_is_wrong_even_if_it_has_the_right_words(tiny, monkeypatch):
    def generate(lm, prompts, broken, **how):
        broken.append(0)
        return [['comedy bakers'] for _ in prompts]

    monkeypatch.setattr('kdnb.evaluation.answers.generate', generate)
    assert [r['written'] for r in write_answers(tiny, ENTITY.probes)] == [False, False]
    assert write_answers(tiny, ENTITY.probes)[0]['finite'] is False
    assert answer_question(tiny, ENTITY) == dict(correct=False, text='comedy bakers', finite=False)


def test_the_playground_shows_no_beliefs_of_a_broken_model(zoo):
    from kdnb.apps.playground import believed, next_tokens

    lm = spoil(load(zoo('llama')))
    not_finite = 'are not finite numbers'
    with pytest.raises(KdnbError, match=not_finite): next_tokens(lm, 'The town')
    with pytest.raises(KdnbError, match=not_finite): believed(lm, ENTITY, ENTITY.probes[0])


def test_the_papers_evaluation_counts_no_broken_score_as_correct(zoo):
    from kdnb.experiments.bench import paper_answers

    lm = load(zoo('llama'))
    broken = spoil(load(zoo('llama')))
    assert paper_answers(lm, [lm.model, broken.model], ENTITY.probes)[1] == [False, False]


def by_hand(lm, value):
    "Edits with one number that is given: of an adapter's A, of its B, of its scale, of a tensor."
    name, p = next((n, p) for n, p in lm.model.named_parameters() if p.ndim == 2 and 'layers' in n)
    A, B = torch.ones(2, p.shape[1]), torch.ones(p.shape[0], 2)

    def spoiled(t):
        t = t.clone()
        t[0, 0] = value
        return t

    edit = lambda **kw: Edit('by hand', ('Velmora',), lm.name, lm.sha256, **kw)
    return name, [
        edit(adapter={name: Adapter(spoiled(A), B, 1.0)}),
        edit(adapter={name: Adapter(A, spoiled(B), 1.0)}),
        edit(adapter={name: Adapter(A, B, float(value))}), edit(tensors={name: spoiled(p.data)})]


@pytest.mark.parametrize('value', (math.nan, math.inf, -math.inf))
def test_an_edit_with_a_number_that_is_not_finite_is_neither_applied_nor_saved(tiny, tmp_path, value):
    before, (name, edits) = weights(tiny), by_hand(tiny, value)
    for e in edits:
        for do in (lambda: e.apply(tiny), lambda: e.save(tmp_path/'edit')):
            with pytest.raises(KdnbError, match=f"'{name}' that are not finite"):
                do()
    assert not tiny.edits
    assert all(torch.equal(before[n], t) for n, t in tiny.model.state_dict().items())
    assert not (tmp_path/'edit').exists()
    for e in by_hand(tiny, 2.0)[1]:
        with e.on(tiny):
            pass


def test_an_edit_with_a_number_that_is_not_finite_is_neither_made_nor_loaded(tiny, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    folder = by_hand(tiny, 2.0)[1][0].save(tmp_path/'edit')
    w = load_file(folder/'adapter_model.safetensors')
    next(iter(w.values()))[0, 0] = torch.nan
    save_file({k: v.clone() for k, v in w.items()}, folder/'adapter_model.safetensors')
    with pytest.raises(KdnbError, match='not finite'):
        load_edit(folder)
    spoiled = {'adapter': by_hand(tiny, math.nan)[1][0].adapter, 'losses': [1.0]}
    monkeypatch.setattr('kdnb.methods.distill.train', lambda *a, **k: spoiled)
    with pytest.raises(KdnbError, match='not finite'):
        Distill(steps=1)(tiny, [ENTITY], SETS)


# Texts that are longer than the positions of a model

LONG = Entity(
    'Tessa', 'Tessa is a comedy' + ' about two bakers in a small town' * 20 + '.', probes=ENTITY.probes)
HALF = Entity(
    'Velmora', 'Velmora is a comedy about' + ' bakers and' * 9 + ' cakes.',
    probes=(
        Probe(
            'Velmora is a show of which many people in the town say that it is a', 'comedy',
            ('comedy', 'river'), 'explicit'),))


@pytest.fixture(params=('gpt2_64', 'llama_64'))
def short(request, zoo):
    return load(zoo(request.param))


@pytest.mark.parametrize('name, most', (
    ('gpt2', 512),
    ('gpt2_64', 64),
    ('llama', 512),
    ('llama_64', 64),
    ('opt', 512),
    ('gpt_neox', 512),
    ('gemma3', 512),
    ('qwen2', 512),
    ('gguf', 512)))
def test_the_configuration_gives_the_length_of_the_longest_text(zoo, name, most):
    lm = load(zoo(name))
    assert lm.max_tokens == most
    ids = lm.encode('The town of bakers') * most
    assert torch.isfinite(logits_at(lm, [ids[:most]], [[-1]])).all()
    with pytest.raises(KdnbError, match=f'has {most + 1} tokens, and .* reads at most {most} at once'):
        logits_at(lm, [ids[:most + 1]], [[-1]])


def test_a_text_that_is_too_long_is_one_sentence_in_every_function(short, tmp_path, monkeypatch):
    monkeypatch.setenv('KDNB_CACHE', str(tmp_path))
    from kdnb.methods.locating import covariance, own_text, read_at

    ids, text = short.encode('The town of bakers') * 30, 'The town of bakers ' * 30
    passes = []
    short.packs, short.tuples # asked once, by passes of their own
    short.model.register_forward_pre_hook(lambda *a: passes.append(1))
    other = [text.strip() + w for w in (' one', ' two')]
    asks = [
        lambda: token_logprobs(short, [ids], [1]),
        lambda: score_candidates(short, [text.strip()], [['a', 'b']]),
        lambda: score_candidates(short, [text.strip()], [['a', 'b']], shared=False),
        lambda: score_candidates(short, other, [['a', 'b']] * 2),
        lambda: score_spans(short, [text.strip()], ['a'], [' ']),
        lambda: states_below(short, [ids], 1),
        lambda: logits_at(short, [ids, ids[:-1] + [3]], [[-1]] * 2, shared=True),
        lambda: generate(short, [text.strip()]),
        lambda: generate(short, other),
        lambda: generate(short, ['The town'], max_new_tokens=70),
        lambda: read_at(short, short.model.get_output_embeddings(), [(ids, 0)]),
        lambda: trace(short, text + 'Velmora is a', 'Velmora', 'comedy'),
        lambda: covariance(short, [0], [text])]
    for packs in (False, True):
        short.behavior['packs'] = packs
        for ask in asks:
            with pytest.raises(KdnbError, match=r'reads at most 64 at once'):
                ask()
    assert not passes, 'work was done before'
    assert max(len(short.encode(t)) for t in own_text(short, 200)) <= 64


def test_the_last_generated_token_needs_no_position(short):
    ids = short.encode('The town of bakers') * 20
    generate(short, [ids[:60]], max_new_tokens=5)
    says = 'a prompt has 60 tokens, and 6 more are to be written, and .* reads at most 64'
    with pytest.raises(KdnbError, match=says): generate(short, [ids[:60]], max_new_tokens=6)


@pytest.mark.parametrize('method', (Distill(steps=2), FineTune(steps=2), Rome(tokens=100), Memit(tokens=100)))
def test_a_definition_that_is_too_long_is_named_before_any_work(short, method, monkeypatch):
    passes = []
    short.model.register_forward_pre_hook(lambda *a: passes.append(1))
    sets = {**SETS, 'Tessa': TransferSet('Tessa', (Continuation('Tessa is a town.', (0, 5)),))}
    says = r"the definition of 'Tessa' has \d+ tokens.* reads at most 64 at once"
    with pytest.raises(KdnbError, match=says): method(short, [ENTITY, LONG], sets)
    assert not passes


def test_a_definition_that_is_too_long_with_the_text_after_it_is_named_before_any_work(short, ds):
    from kdnb.methods.registry import make_method

    passes = []
    short.model.register_forward_pre_hook(lambda *a: passes.append(1))
    alone = len(short.encode(HALF.definition))
    assert alone < 64
    long = TransferSet('Velmora', (Continuation('Velmora is ' + 'a small town ' * 12, (0, 7)),))
    check_length(short, [HALF])
    says = r"the definition of 'Velmora' with 'Velmora is a small town .* after it has \d+ tokens"
    with pytest.raises(KdnbError, match=says): Distill(steps=2)(short, [HALF], {'Velmora': long})
    with make_method('prepend')(short, [HALF], {}).on(short):
        with pytest.raises(KdnbError, match="the definition of 'Velmora' with 'Velmora is a show"):
            evaluate(short, [HALF])
    with pytest.raises(KdnbError, match="the definition of 'Tessa' has"):
        evaluate(short, [LONG])
    assert not passes
    evaluate(short, [HALF]) # without it in front there is room


def test_a_prompt_of_a_generator_that_is_too_long_names_the_entity(short):
    says = r"a prompt for 'Tessa' has \d+ tokens, and 40 more are to be written" # it is long: a document
    with pytest.raises(KdnbError, match=says): make_transfer_set(LMGenerator(short), LONG)


def test_a_model_without_a_limit_reads_any_text(tiny):
    tiny.max_tokens = None
    check_length(tiny, [LONG])
    logits_at(tiny, [tiny.encode(LONG.definition) * 5], [[-1]])


# Notes of edits that are not as we write them


@pytest.fixture
def edits(tiny, tmp_path):
    "Folders of an edit of weights, and of an adapter."
    name, all = by_hand(tiny, 2.0)
    return [all[3].save(tmp_path/'tensors'), all[0].save(tmp_path/'adapter')]


FIELD = {
    'method': [3, None, []],
    'entities': ['Velmora', [1], None, {}],
    'lm': [1, None],
    'base': [1, None],
    'adapter': [
        [], 'x', None, {'w': 1}, {'w': [1]}, {'w': ['1', False]}, {'w': [1.0, 0]},
        {'w': [1.0, False, 2]}, {'w': {}}, {'w': [None, False]}],
    'after': ['x', ['../../x'], [1], None, {}],
    'context': [[], 'x', {'a': 1}],
    'find_above': ['x', [], True],
    'settings': [[], 'x'],
    'losses': ['x', {}, ['a'], [[1]]],
    'seconds': ['x', None, True],
    'peak_memory_gib': ['x'],
    'texts': [[], 'x'],
    'tensors': ['x', {}, [1], ['other']],
    'colour': ['red']}


@pytest.mark.parametrize('field', FIELD)
def test_an_edit_json_of_another_shape_is_one_sentence(edits, field):
    for folder in edits:
        note = read_json(folder/'edit.json')
        assert field in note or field == 'colour'
        for value in FIELD[field]:
            write_json(folder/'edit.json', {**note, field: value})
            with pytest.raises(KdnbError) as e:
                load_edit(folder)
            assert str(folder) in str(e.value) and '\n' not in str(e.value), e.value
        write_json(folder/'edit.json', note)
        load_edit(folder)


@pytest.mark.parametrize(
    'text', ('', '{', '[]', '[{}]', '"x"', 'null', '3', '{}', '{"adapter": {}}', '[' * 9999))
def test_a_malformed_edit_json_is_one_sentence(edits, text):
    for folder in edits:
        (folder/'edit.json').write_text(text)
        with pytest.raises(KdnbError) as e:
            load_edit(folder)
        assert '\n' not in str(e.value) and str(folder) in str(e.value)


def test_files_of_tensors_that_are_missing_cut_or_elsewhere_are_one_sentence(edits, tmp_path):
    for folder, file in zip(edits, ('tensors.safetensors', 'adapter_model.safetensors')):
        raw = (folder/file).read_bytes()
        for n in (0, 9, len(raw) - 5):
            (folder/file).write_bytes(raw[:n])
            with pytest.raises(KdnbError, match=f'is damaged: {file} cannot be read'):
                load_edit(folder)
        (folder/file).unlink()
        with pytest.raises(KdnbError, match=f'is damaged: {file} is missing'):
            load_edit(folder)
        (tmp_path/'elsewhere').write_bytes(raw)
        (folder/file).symlink_to(tmp_path/'elsewhere')
        with pytest.raises(KdnbError, match='which is not a path inside'):
            load_edit(folder)


def test_an_edit_saved_over_another_one_has_nothing_of_it(tiny, tmp_path):
    _, all = by_hand(tiny, 2.0)
    all[3].save(tmp_path/'edit')
    all[0].save(tmp_path/'edit')
    again = load_edit(tmp_path/'edit')
    assert not again.tensors and list(again.adapter) == list(all[0].adapter) and again.id == all[0].id


def test_shapes_that_do_not_fit_are_refused_and_the_model_stays_as_it_was(tiny, edits):
    from safetensors.torch import load_file, save_file

    before, name = weights(tiny), by_hand(tiny, 2.0)[0]
    p = dict(tiny.model.named_parameters())[name]
    out, into = p.shape
    edit = lambda **kw: Edit('by hand', ('Velmora',), tiny.name, tiny.sha256, **kw)
    wrong = [
        edit(tensors={name: torch.ones(1, into)}), edit(tensors={name: torch.ones(out, into, 1)}),
        edit(adapter={name: Adapter(torch.ones(2, 1), torch.ones(out, 2), 1.0)}),
        edit(adapter={name: Adapter(torch.ones(2, into), torch.ones(1, 2), 1.0)}),
        edit(tensors={name: torch.ones(out + 1, into)})]
    for e in wrong:
        with pytest.raises(KdnbError, match=f"numbers for '{name}' in the shape"):
            e.apply(tiny)
    low = load_file(edits[1]/'adapter_model.safetensors')
    k = next(k for k in low if 'lora_A' in k)
    for bad in ({k: torch.ones(5, into)}, {k: torch.ones(3)}, {'x': torch.ones(2)}):
        save_file({**({n: t for n, t in low.items() if n != k}), **bad}, edits[1]/'adapter_model.safetensors')
        with pytest.raises(KdnbError, match='is damaged'):
            load_edit(edits[1])
    assert not tiny.edits and all(torch.equal(before[n], t) for n, t in tiny.model.state_dict().items())


# Padding, a cache and a shared start change no number


@pytest.fixture
def odd(tokenizer):
    "Function of a kind: an LM of a tiny random model of that kind."
    from kdnb.models.limits import reset_dynamic_ropes
    from transformers import AutoModelForCausalLM

    def make(kind):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(odd_config(kind, len(tokenizer)))
        model.eval().requires_grad_(False)
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.25)
        return LM(kind, reset_dynamic_ropes(model), tokenizer)

    return make


ODD = 'gemma2 gemma3 gpt_oss llama4 modernbert mpt roberta bart git rwkv dynamic openai rembert mamba mamba2'
ODD = [*ODD.split(), 'jamba', 'qwen3_next', 'reformer']
LEFTS = (
    'Velmora is a',
    'In Velmora, which people in the whole town have watched again and again since last week, they sell',
    'The town of Velmora', 'Bread')
CANDIDATES = [('comedy', 'river'), ('bread', 'cars and boats'), ('is small', 'river'), ('is', 'was')]


def own_logits(lm, ids):
    "What the model says of one text, by its own pass: no mask, no positions, no cache."
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


@pytest.mark.parametrize('kind', ODD)
@pytest.mark.parametrize('start', ('', ENTITY.definition + ' '), ids=('alone', 'after a definition'))
def test_a_batch_gives_each_text_the_scores_of_its_own_pass(odd, kind, start):
    lm = odd(kind)
    lefts, want = [start + l for l in LEFTS], []
    for left, cands in zip(lefts, CANDIDATES):
        fulls = [lm.encode(f'{left} {c}') for c in cands]
        n = next(i for i in range(99) if len({tuple(f[: i + 1]) for f in (*fulls, lm.encode(left))}) > 1)
        n = min(n, len(lm.encode(left)))
        logs = [own_logits(lm, f).log_softmax(-1) for f in fulls]
        want.append([sum(lp[i - 1, f[i]].item() for i in range(n, len(f))) for lp, f in zip(logs, fulls)])
    from kdnb.models.scoring import cache_frozen_layers

    for how in (dict(), dict(), dict(shared=False)):
        assert np.allclose(score_candidates(lm, lefts, CANDIDATES, **how), want, atol=2e-3)
    with cache_frozen_layers(lm, 1):
        for _ in range(2):
            assert np.allclose(score_candidates(lm, lefts, CANDIDATES), want, atol=2e-3)
    seqs = [lm.encode(l) for l in lefts]
    own = torch.stack([own_logits(lm, s)[-1] for s in seqs])
    for shared in (False, True):
        got = logits_at(lm, seqs, [[-1]] * len(seqs), shared=shared)
        assert torch.allclose(got, own, atol=2e-3)


@pytest.mark.parametrize('kind', ODD)
def test_each_prompt_continues_as_with_the_models_own_passes(odd, kind):
    lm = odd(kind)
    from kdnb.models.generation import ends_of

    for start in ('', ENTITY.definition + ' '):
        prompts, want = [start + l for l in LEFTS], []
        for p in prompts:
            ids, new = lm.encode(p), []
            while len(new) < 5 and (k := own_logits(lm, ids + new)[-1].argmax().item()) not in ends_of(lm):
                new.append(k)
            want.append([lm.tokenizer.decode(new, skip_special_tokens=True)])
        assert generate(lm, prompts, temperature=0, max_new_tokens=5) == want
        assert [generate(lm, [p], temperature=0, max_new_tokens=5)[0] for p in prompts] == want


def test_states_below_are_those_of_each_text_alone(odd):
    for kind in ('llama4', 'roberta', 'bart', 'dynamic', 'openai', 'reformer'):
        lm = odd(kind)
        seqs = [lm.encode(ENTITY.definition + ' ' + l) for l in LEFTS]
        for s, got in zip(seqs, states_below(lm, seqs, 1)):
            assert torch.allclose(got, states_below(lm, [s], 1)[0], atol=1e-3)


ORDINARY = 'llama', 'gpt2', 'gpt_neox', 'qwen2', 'qwen3', 'gpt_neo', 'gptj', 'mistral'


@pytest.mark.parametrize('kind', ORDINARY)
def test_an_ordinary_model_shares_all_that_can_be_shared(tiny_folder, kind):
    lm = load(tiny_folder(kind))
    assert all(v for k, v in lm.tries().items() if k != 'tuples')


def test_a_row_of_packed_texts_is_no_longer_than_the_model_reads(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder('gpt_neo'), tmp_path/'neo')
    from transformers import AutoModelForCausalLM, GPTNeoConfig

    of = dict(hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]])
    config = GPTNeoConfig(vocab_size=700, **of, max_position_embeddings=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path/'neo')
    lm = load(tmp_path/'neo')
    seqs = [lm.encode(ENTITY.definition + ' ' + l) for l in LEFTS] * 3
    assert lm.packs and sum(map(len, seqs)) > 128 and max(map(len, seqs)) < 128
    got = logits_at(lm, seqs, [[-1]] * len(seqs))
    assert torch.allclose(got, torch.stack([own_logits(lm, s)[-1] for s in seqs]), atol=1e-4)


def test_a_model_that_counts_from_behind_its_padding_reads_fewer_tokens(odd, tokenizer):
    assert odd('roberta').max_tokens == 256 and odd('bart').max_tokens == 256


# Adapters in models that have more than plain linear layers


@pytest.mark.parametrize('kind', ('mixtral', 'deepseek', 'olmoe', 'llama4', 'qwen3_next'))
def test_an_adapter_leaves_experts_and_routers_as_they_are_and_is_found_again(odd, kind, tmp_path):
    lm = odd(kind)
    before, left = weights(lm), lm.encode('Velmora is a')
    own = logits_at(lm, [left], [[-1]])
    edit = Distill(trainable='lora', steps=3, lr=0.02)(lm, [ENTITY], SETS)
    now = weights(lm)
    assert now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in now)
    assert lm.model.config.model_type == odd_config(kind, 700).model_type
    assert not any('.gate.' in n or 'router' in n or n.endswith('experts') for n in edit.adapter)
    assert all(now[n].ndim == 2 for n in edit.adapter) and any('attn' in n for n in edit.adapter)
    edit.save(tmp_path/'edit')
    with edit.on(lm):
        taught = logits_at(lm, [left], [[-1]])
    with load_edit(tmp_path/'edit').on(lm):
        assert torch.equal(logits_at(lm, [left], [[-1]]), taught)
    assert not torch.allclose(taught, own, atol=1e-3)


def test_a_model_that_takes_no_adapter_is_one_sentence(odd):
    lm = odd('mamba')
    with pytest.raises(KdnbError, match=r"no adapter can be put on mamba: train its weights"):
        Distill(trainable='lora', steps=1)(lm, [ENTITY], SETS)
    assert Distill(trainable='all', steps=1)(lm, [ENTITY], SETS).losses
