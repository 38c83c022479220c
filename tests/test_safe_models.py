"""A model is data: nothing in it runs, no part of it is dropped silently, impossible parts are errors."""

import ast, json, math, os, re, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest, torch
from conftest import ROOT
from kdnb.core.errors import KdnbError
from kdnb.models.model import load_lm
from kdnb.models.scoring import score_candidates
from safetensors.torch import load_file, save_file
from zoo import NAMES

CAUSAL = [n for n in NAMES if n not in ('bert', 'bart')]
LEFTS, CANDIDATES = (
    ['The capital of France is', 'A baby cat'], [['Paris', 'a town of many rivers'], ['kitten', 'river']])


def load(path):
    return load_lm(str(path), device='cpu')


def same_scores(*models):
    "Whether models score alike; where tensors lie in memory changes the last digits on some processors."
    first, *others = (score_candidates(lm, LEFTS, CANDIDATES) for lm in models)
    return all(np.allclose(first, scores, rtol=1e-6) for scores in others)


def copy(path, to):
    shutil.copytree(path, to)
    return to


def edit_json(path, **change):
    "Changes fields of a JSON file; one that is not there is made."
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **change}))


def refused(path, *says):
    "Loading gives one sentence that holds all of `says`."
    with pytest.raises(KdnbError) as e:
        load(path)
    for s in says:
        assert s in str(e.value), str(e.value)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', CAUSAL)
def test_every_causal_model_of_the_zoo_gives_scores(zoo, name):
    got = score_candidates(load(zoo(name)), LEFTS, CANDIDATES)
    assert all(s < 0 for ss in got for s in ss)


def test_a_gguf_file_scores_like_a_folder_with_the_same_weights(zoo):
    file, folder = (load(zoo(n)) for n in ('gguf', 'llama'))
    assert file.encode('The town') == folder.encode('The town')
    assert same_scores(file, folder)


# Nothing runs

EVIL = '''import pathlib
pathlib.Path({marker!r}).write_text('it ran')
class Evil:
    def __init__(self, *a, **k): pass
    @classmethod
    def from_pretrained(cls, *a, **k): return cls()
def generate(*a, **k): pass
'''
AUTO = 'AutoConfig', 'AutoModel', 'AutoModelForCausalLM', 'AutoModelForDepthEstimation', 'AutoProcessor'
MAP = dict.fromkeys(AUTO, 'evil.Evil')
ASKS = { # entries of a model folder, next to its Python file
    'auto_map of the tokenizer': {
        'tokenizer_config.json': dict(
            auto_map={'AutoTokenizer': ['evil.Evil', 'evil.Evil']}, tokenizer_class='Evil')},
    'auto_map of the tokenizer, as a list': {
        'tokenizer_config.json': dict(auto_map=[None, 'evil.Evil'], tokenizer_class=None)},
    'auto_map of the configuration': {'config.json': dict(auto_map=MAP)},
    'auto_map of an unknown model type': {'config.json': dict(auto_map=MAP, model_type='evil')},
    'a tokenizer class that loads a model': {
        'config.json': dict(auto_map=MAP),
        'tokenizer_config.json': dict(tokenizer_class='AutoModelForDepthEstimation')},
    'a tokenizer class in the configuration': {
        'config.json': dict(auto_map=MAP, tokenizer_class='AutoModelForDepthEstimation'),
        'tokenizer_config.json': dict(tokenizer_class=None)},
    'auto_map of generation': {
        'generation_config.json': dict(auto_map={'GenerationConfig': 'evil.Evil'}, custom_generate='evil')},
    'a function for generation': {}}


def planted(folder, files, marker):
    "Puts code and what asks for it into a folder."
    for name in ('evil.py', 'custom_generate/generate.py', 'modeling_evil.py'):
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_text(EVIL.format(marker=str(marker)))
    for name, change in files.items():
        edit_json(folder/name, **change)


def in_process(paths):
    "What comes of models in a process of its own, which finds a y on standard input."
    code = """import sys
from kdnb.models.model import load_lm; from kdnb.models.generation import generate
from kdnb.core.errors import KdnbError
for path in sys.argv[1:]:
    try: print('wrote', generate(load_lm(path, device='cpu'), ['The town'], max_new_tokens=2))
    except KdnbError as e: print('refused', e)"""
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, paths)], input='y\n' * 50, capture_output=True,
        text=True, cwd=ROOT)
    assert not done.returncode, done.stderr
    assert '[y/N]' not in done.stdout + done.stderr, 'a question was asked'
    return done.stdout.splitlines()


def test_no_code_of_a_folder_runs_even_if_standard_input_says_yes(zoo, tmp_path):
    folders = {what: copy(zoo('llama'), tmp_path/str(i)) for i, what in enumerate(ASKS)}
    for what, folder in folders.items():
        planted(folder, ASKS[what], folder/'marker')
    said = dict(zip(ASKS, in_process(folders.values()), strict=True))
    assert not [what for what, f in folders.items() if (f/'marker').exists()]
    assert all(s.startswith(('wrote', 'refused')) for s in said.values())
    assert said['a function for generation'].startswith('wrote')


def test_no_other_file_in_the_folder_of_a_gguf_file_is_read(zoo, tmp_path):
    files, alone = [], load(zoo('gguf'))
    for i, what in enumerate(ASKS):
        (tmp_path/str(i)).mkdir()
        file = Path(shutil.copy(zoo('gguf'), tmp_path/str(i)))
        files.append(file)
        import_runs = {
            'adapter_config.json': dict(peft_type='LORA', base_model_name_or_path='x'),
            'special_tokens_map.json': dict(eos_token='x')}
        planted(file.parent, {**ASKS[what], **import_runs}, file.parent/'marker')
        (file.parent/'tokenizer.json').write_text('{')
        (file.parent/'chat_template.jinja').write_text('{{ evil }}')
    assert all(s.startswith('wrote') for s in in_process(files))
    assert not [f for f in files if (f.parent/'marker').exists()]
    lm = load(files[0])
    assert lm.tokenizer.chat_template is None and lm.tokenizer.get_vocab() == alone.tokenizer.get_vocab()
    assert same_scores(lm, alone)


@pytest.mark.parametrize('files, says', [
    (
        {'config.json': dict(model_type='evil', auto_map=MAP)},
        'brings code of its own (auto_map), which is never run here'),
    (
        {'config.json': dict(attn_implementation='org/kernel')},
        "asks for the attention 'org/kernel', which is code from elsewhere"),
    ({'config.json': dict(_attn_implementation={'': 'org/kernel:fn'})}, "'org/kernel:fn'"),
    # transformers would fetch it from a hub
    ({'config.json': dict(attn_implementation='flash_attention_2')}, "'flash_attention_2'"),
    ({'config.json': dict(experts_implementation='org/kernel')}, "asks for the experts 'org/kernel'"),
    ({'config.json': dict(quantization_config={'quant_method': 'quark'})}, "quantised weights ('quark'"),
    ({'config.json': dict(quantization_config='evil')}, "quantised weights ('evil'"),
    ({'config.json': dict(transformers_weights='adapter_model.bin')}, "names 'adapter_model.bin' as weights"),
    ({'config.json': dict(transformers_weights='../x.safetensors')}, "names '../x.safetensors' as weights"),
    ({'tokenizer_config.json': dict(tokenizer_class='AutoModel')}, "'AutoModel', which is no tokenizer"),
    ({'tokenizer_config.json': dict(tokenizer_class=['a'])}, 'which is no tokenizer')],
)
def test_a_folder_that_needs_its_own_code_is_refused_in_one_sentence(zoo, tmp_path, files, says):
    folder = copy(zoo('llama'), tmp_path/'lm')
    for name, change in files.items():
        edit_json(folder/name, **change)
    refused(folder, says, str(folder))


def test_a_model_with_auto_map_is_loaded_by_the_class_that_transformers_has(zoo, tmp_path):
    folder = copy(zoo('llama'), tmp_path/'lm')
    planted(folder, ASKS['auto_map of the configuration'], tmp_path/'marker')
    assert same_scores(load(folder), load(zoo('llama')))


def test_all_loading_passes_through_one_function():
    def calls(path): # calls only, no words in texts
        found = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
        return [ast.unparse(n) for n in found if getattr(n.func, 'attr', '') == 'from_pretrained']
    found = {str(p.relative_to(ROOT/'kdnb')): calls(p) for p in (ROOT/'kdnb').rglob('*.py')}
    loads = 'models/checks.py'
    assert {k for k, v in found.items() if v} == {loads} and len(found[loads]) == 1
    assert 'trust_remote_code=False' in found[loads][0]
    reports = [json.loads(p.read_text()) for p in (ROOT/'nbs'/'reports').rglob('*.ipynb')]
    sources = [l for nb in reports for c in nb['cells'] for l in c['source']]
    lines = [l for l in sources if re.search(r'Auto\w+\.from_pretrained', l)]
    assert lines and all('trust_remote_code=False' in l for l in lines)
    other = r'from_config\((?!.*trust_remote_code=False)|PeftModel|load_adapter\(|torch\.load\('
    other += r'|pickle\.\w|trust_remote_code=True|\bpipeline\('
    lines = [(p.name, l) for p in (ROOT/'kdnb').rglob('*.py') for l in p.read_text().splitlines()]
    bad = [(name, l) for name, l in lines if re.search(other, l)]
    # messages between our own processes
    assert not [(name, l) for name, l in bad if name != 'workers.py' or 'pickle' not in l]


def test_while_a_model_loads_no_pickle_can_be_opened_and_afterwards_it_can(zoo, tmp_path):
    from kdnb.models.checks import pretrained

    torch.save({'a': torch.zeros(1)}, tmp_path/'x.bin')
    load(zoo('llama'))
    assert torch.load(tmp_path/'x.bin')['a'] == 0
    with pytest.raises(KdnbError):
        pretrained('config', tmp_path/'nowhere')
    assert torch.load(tmp_path/'x.bin')['a'] == 0


# Weights: safetensors of the folder, and nothing else


def sharded(zoo, to):
    "A copy of a model in two files of weights, with their index."
    copy(zoo('llama'), to)
    w = load_file(to/'model.safetensors')
    (to/'model.safetensors').unlink()
    index = {n: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, n in enumerate(w)}
    for f in set(index.values()):
        save_file({n: t for n, t in w.items() if index[n] == f}, to/f, metadata={'format': 'pt'})
    (to/'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': index}))
    return to, index, w


def test_an_index_names_safetensors_of_its_folder_and_nothing_else(zoo, tmp_path):
    folder, index, w = sharded(zoo, tmp_path/'lm')
    assert same_scores(load(folder), load(zoo('llama')))
    first = next(iter(index))
    torch.save({first: w[first]}, folder/'part.bin')
    shutil.copy(folder/index[first], tmp_path/'x.safetensors')
    for bad in (
            'part.bin', '../x.safetensors', str(tmp_path/'x.safetensors'), 'sub/x.safetensors',
            '.safetensors', 'missing.safetensors', 'a\\x.safetensors', 3):
        edit_json(folder/'model.safetensors.index.json', weight_map={**index, first: bad})
        refused(
            folder, 'model.safetensors.index.json', repr(str(bad)[:80]),
            'which is missing' if bad == 'missing.safetensors' else 'only safetensors files in the folder')
    for bad in ([1], 'x', {'weight_map': [1]}):
        (folder/'model.safetensors.index.json').write_text(json.dumps(bad))
        refused(folder)


def in_hub_cache(folder, cache, name='org/tiny'):
    "Puts a model where the hub's cache has it: files are links to blobs."
    repo, commit = cache/f"models--{name.replace('/', '--')}", 'a' * 40
    for f in ('blobs', 'refs', f'snapshots/{commit}'):
        (repo/f).mkdir(parents=True)
    (repo/'refs'/'main').write_text(commit)
    for i, p in enumerate(sorted(folder.iterdir())):
        shutil.copy(p, repo/'blobs'/f'{i:040x}')
        os.symlink(f'../../blobs/{i:040x}', repo/'snapshots'/commit/p.name)
    return repo/'snapshots'/commit


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "An empty cache of the hub; there is no network."
    import huggingface_hub.constants as c

    monkeypatch.setattr(c, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr(c, 'HF_HUB_OFFLINE', True)
    return tmp_path/'hub'


def test_a_model_in_the_cache_of_the_hub_is_loaded_by_name_and_by_folder(zoo, hub, tmp_path):
    folder, *_ = sharded(zoo, tmp_path/'lm')
    snapshot = in_hub_cache(folder, hub)
    assert same_scores(load(snapshot), load(zoo('llama')), load('org/tiny'))


@pytest.mark.parametrize('change, says', [
    ({'model.safetensors.index.json': dict(weight_map={'a': 'part.bin'})}, "names 'part.bin' as weights"),
    (
        {'adapter_config.json': dict(base_model_name_or_path='org/base')},
        "holds an adapter (adapter_config.json, for the base model 'org/base')"),
    ({'config.json': dict(attn_implementation='org/kernel')}, "asks for the attention 'org/kernel'"),
    ({'tokenizer_config.json': dict(tokenizer_class='AutoModel')}, 'which is no tokenizer'),
    ({'config.json': dict(quantization_config={'quant_method': 'fp8'})}, "quantised weights ('fp8'")])
def test_a_model_on_the_hub_is_checked_like_a_folder(zoo, hub, tmp_path, change, says):
    folder, *_ = sharded(zoo, tmp_path/'lm')
    for name, fields in change.items():
        edit_json(folder/name, **fields)
    in_hub_cache(folder, hub)
    refused('org/tiny', says, 'org/tiny')


def test_a_name_that_the_hub_does_not_have_is_one_sentence(hub):
    refused('org/nothing', "the name 'org/nothing'", 'the model hub gave no model of that name')


def test_a_folder_with_an_adapter_is_refused(zoo, tmp_path):
    folder = copy(zoo('llama'), tmp_path/'lm')
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules='all-linear', task_type='CAUSAL_LM')
    get_peft_model(load(zoo('llama')).model, config).save_pretrained(folder)
    assert (folder/'adapter_model.safetensors').exists()
    base = json.loads((folder/'adapter_config.json').read_text())['base_model_name_or_path']
    refused(folder, str(folder), 'holds an adapter', base, 'load the base model, or merge the adapter')
    (folder/'adapter_config.json').write_text('{}')
    refused(folder, 'holds an adapter')
    (folder/'adapter_config.json').write_text('[]')
    refused(folder, 'adapter_config.json')
    (folder/'config.json').unlink()
    edit_json(tmp_path/'only.json')
    shutil.copy(tmp_path/'only.json', folder/'adapter_config.json')
    refused(folder, 'holds an adapter')


def rewrite(folder, change):
    "Changes the weights of a folder."
    w = {k: v.clone() for k, v in load_file(folder/'model.safetensors').items()}
    save_file(change(w), folder/'model.safetensors', metadata={'format': 'pt'})


@pytest.mark.parametrize('name', ('llama', 'gpt2', 'opt'))
def test_missing_weights_are_named(zoo, tmp_path, name):
    folder = copy(zoo(name), tmp_path/'lm')
    gone = sorted(k for k in load_file(folder/'model.safetensors') if '.1.' in k)
    rewrite(folder, lambda w: {k: v for k, v in w.items() if k not in gone})
    refused(
        folder, f'{len(gone)} weights of the model are not in the files', gone[0].split('.1.')[1],
        f'and {len(gone) - 3} more', 'save the whole model again')


def test_tied_weights_are_not_missed_and_untied_ones_are(zoo, tmp_path):
    assert 'lm_head.weight' not in load_file(zoo('llama')/'model.safetensors') # it is the embedding
    load(zoo('llama'))
    folder = copy(zoo('qwen2'), tmp_path/'lm')
    rewrite(folder, lambda w: {k: v for k, v in w.items() if k != 'lm_head.weight'})
    refused(folder, '1 weights of the model are not in the files', 'lm_head.weight')


@pytest.mark.parametrize('name', ('llama', 'gpt2', 'gpt_neox'))
@pytest.mark.parametrize('prefix', ('_orig_mod.', 'module.', 'base_model.wrapped.'))
def test_weights_with_a_prefix_are_refused_and_the_error_names_it(zoo, tmp_path, name, prefix):
    folder = copy(zoo(name), tmp_path/'lm')
    rewrite(folder, lambda w: {prefix + k: v for k, v in w.items()})
    refused(folder, 'are not in the files', prefix)


def test_unused_weights_are_named(zoo, tmp_path, capsys):
    folder = copy(zoo('llama'), tmp_path/'lm')
    load(folder)
    assert capsys.readouterr().err == ''
    rewrite(folder, lambda w: {**w, 'model.layers.7.extra.weight': torch.ones(2)})
    assert same_scores(load(folder), load(zoo('llama')))
    err = capsys.readouterr().err
    assert 'model.layers.7.extra.weight' in err and '1 weights' in err and 'not used' in err


def test_weights_of_another_shape_and_damaged_files_are_one_sentence(zoo, tmp_path):
    folder = copy(zoo('llama'), tmp_path/'lm')
    edit_json(folder/'config.json', intermediate_size=48)
    refused(folder)
    folder = copy(zoo('llama'), tmp_path/'cut')
    raw = (folder/'model.safetensors').read_bytes()
    for n in (0, 5, len(raw) // 2, len(raw) - 3):
        (folder/'model.safetensors').write_bytes(raw[:n])
        refused(folder)
    folder = copy(zoo('llama'), tmp_path/'nan')
    rewrite(folder, lambda w: {k: v * torch.nan for k, v in w.items()})
    refused(folder, 'are not finite numbers')


def test_a_gguf_file_that_lacks_weights_or_is_cut_is_one_sentence(zoo, tmp_path, tokenizer, capsys):
    from zoo import write_gguf

    lm, drop = load(zoo('llama')), 'model.layers.1.mlp.up_proj.weight'
    real = type(lm.model).state_dict

    class Some:
        config = lm.model.config

        def __init__(self, change):
            self.change = change

        def state_dict(self):
            return self.change(dict(real(lm.model)))

    write_gguf(tmp_path/'some.gguf', Some(lambda w: {k: v for k, v in w.items() if k != drop}), tokenizer)
    refused(tmp_path/'some.gguf', '1 weights of the model are not in the files', drop)
    raw = zoo('gguf').read_bytes()
    for n in (0, 3, 100, len(raw) // 2, len(raw) - 100):
        (tmp_path/'cut.gguf').write_bytes(raw[:n])
        refused(tmp_path/'cut.gguf', 'cut.gguf')
    (tmp_path/'dir.gguf').mkdir()
    refused(tmp_path/'dir.gguf', 'no file')


# Models that are not causal


def test_a_model_that_fills_gaps_is_refused(zoo):
    refused(zoo('bert'), 'bert is no causal LM', 'a later token changes what it says before it')


def test_an_encoder_with_a_decoder_is_refused(zoo):
    refused(zoo('bart'), 'bart is an encoder with a decoder, and no causal LM')


@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
@pytest.mark.parametrize('name', ('llama', 'gpt2', 'qwen2', 'gemma3', 'gpt_neox', 'opt', 'gguf'))
def test_a_causal_model_is_not_refused_in_any_precision(zoo, name, dtype):
    load_lm(str(zoo(name)), dtype, 'cpu')


# Whatever else is wrong with a folder is one sentence


@pytest.mark.parametrize(
    'file', ('config.json', 'tokenizer_config.json', 'tokenizer.json', 'generation_config.json'))
@pytest.mark.parametrize('text', (
    '', '{', '[1]', '"x"', 'null', '{"a": ' + '[' * 5000,
    '\ud800'.encode('utf-8', 'surrogatepass'), b'\xff\xfe'))
def test_a_damaged_file_is_one_sentence_or_ignored(zoo, tmp_path, file, text):
    folder = copy(zoo('llama'), tmp_path/'lm')
    (folder/file).write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load(folder)
    except KdnbError as e:
        assert '\n' not in str(e) and file != 'generation_config.json', e
    else:
        assert file != 'config.json'


# What a GGUF file asks for, and what it holds besides


@pytest.fixture
def gguf_with(zoo, tokenizer, tmp_path, monkeypatch):
    "Function of keys (added by a function of the writer) and tensors: a GGUF file that has them."
    import gguf
    from zoo import write_gguf

    write = gguf.GGUFWriter.write_header_to_file
    model = load(zoo('llama')).model

    def make(keys=lambda w: None, **tensors):
        def write_more(w, *args):
            keys(w)
            for n, t in tensors.items():
                w.add_tensor(n, np.asarray(t, dtype=np.float32))
            return write(w, *args)

        monkeypatch.setattr(gguf.GGUFWriter, 'write_header_to_file', write_more)
        path = tmp_path/'more.gguf'
        path.unlink(missing_ok=True)
        write_gguf(path, model, tokenizer)
        return path

    return make


def llama3_factors(factor, low, high, original, dim=16, theta=10000.0):
    "As llama.cpp writes them."
    out = []
    for i in range(0, dim, 2):
        wave = 2 * math.pi * theta ** (i / dim)
        smooth = (original/wave - low)/(high - low)
        between = 1/((1 - smooth)/factor + smooth)
        out.append(1 if wave < original / high else factor if wave > original / low else between)
    return out


def scaling(kind, factor=4.0, original=None, **more):
    def keys(w):
        w.add_string('llama.rope.scaling.type', kind)
        w.add_float32('llama.rope.scaling.factor', factor)
        if original:
            w.add_uint32('llama.rope.scaling.original_context_length', original)
        for k, v in more.items():
            w.add_float32(f'llama.rope.scaling.{k}', v)

    return keys


TWINS = {
    'linear': (dict(keys=scaling('linear')), dict(factor=4.0)),
    'old linear': (dict(keys=lambda w: w.add_float32('llama.rope.scale_linear', 4.0)), dict(factor=4.0)),
    'none': (dict(keys=scaling('none', 1.0)), {}),
    'yarn': (dict(keys=scaling('yarn', 4.0, 64)), dict(factor=4.0, original_max_position_embeddings=64)),
    'llama3': (
        {'rope_freqs.weight': llama3_factors(8.0, 1.0, 4.0, 8192)},
        dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)),
    'default': ({'rope_freqs.weight': [1.0] * 8}, {})}


@pytest.mark.parametrize('kind', TWINS)
def test_a_gguf_file_with_scaled_rotary_positions_scores_like_its_folder(
        zoo, tmp_path, gguf_with, kind):
    what, said = TWINS[kind]
    name = {'none': 'default', 'old linear': 'linear'}.get(kind, kind)
    folder = copy(zoo('llama'), tmp_path/'twin')
    edit_json(folder/'config.json', rope_parameters=dict(rope_type=name, rope_theta=10000.0, **said))
    one, other = load(gguf_with(**what)), load(folder)
    assert one.sha256 == other.sha256
    scores = lambda lm: np.array(score_candidates(lm, [LEFTS[0] * 5], CANDIDATES[:1]))
    assert np.allclose(scores(one), scores(other), atol=1e-4)
    assert np.allclose(scores(one), scores(load(zoo('llama'))), atol=1e-4) == (not said)
    one.model.save_pretrained(tmp_path/'saved')
    one.tokenizer.save_pretrained(tmp_path/'saved')
    assert np.allclose(scores(load(tmp_path/'saved')), scores(one), atol=1e-4)


@pytest.mark.parametrize('what, says', (
    (dict(keys=scaling('spiral')), 'llama.rope.scaling.type = spiral'),
    (dict(keys=scaling('yarn', yarn_log_multiplier=0.5)), 'llama.rope.scaling.yarn_log_multiplier'),
    ({'rope_freqs.weight': [1.0] + [8.0] * 7}, 'rope_freqs.weight'),
    ({'rope_factors_long.weight': [1.0] * 8}, 'rope_factors_long.weight'),
    ({'blk.0.attn_q.bias': [3.0] * 32}, 'blk.0.attn_q.bias'),
    ({'blk.9.ffn_up.weight': [[0.0] * 32] * 64}, 'blk.9.ffn_up.weight')))
def test_unsupported_entries_of_a_gguf_file_are_refused(gguf_with, what, says):
    refused(gguf_with(**what), 'more.gguf', says)


def test_unused_tensors_of_a_gguf_file_are_named(gguf_with, capsys):
    load(gguf_with())
    assert 'not used' not in capsys.readouterr().err
    load(gguf_with(**{'other.weight': [1.0, 2.0]}))
    err = capsys.readouterr().err
    assert 'other.weight' in err and '1 weights' in err and 'not used' in err


# A configuration and a tokenizer that belong to other weights


def test_layers_and_biases_in_a_folder_that_the_model_would_leave_out_are_refused(zoo, tmp_path):
    folder = copy(zoo('llama'), tmp_path/'fewer')
    edit_json(folder/'config.json', num_hidden_layers=1)
    refused(folder, 'more layers than its configuration says', 'model.layers.1.')
    folder = copy(zoo('llama'), tmp_path/'biases')
    rewrite(folder, lambda w: {**w, 'model.layers.0.self_attn.q_proj.bias': torch.ones(32)})
    refused(folder, 'biases that the model would leave out', 'model.layers.0.self_attn.q_proj.bias')


def test_the_error_for_a_wrong_tie_word_embeddings_names_it(zoo, tmp_path):
    folder = copy(zoo('llama'), tmp_path/'lm')
    edit_json(folder/'config.json', tie_word_embeddings=False)
    refused(folder, 'lm_head.weight', 'set tie_word_embeddings to true in config.json')


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_one_sentence(zoo, tmp_path):
    from transformers import AutoTokenizer

    folder = copy(zoo('llama'), tmp_path/'more')
    tok = AutoTokenizer.from_pretrained(folder)
    tok.add_tokens(['zork', 'zork2'])
    tok.save_pretrained(folder)
    refused(folder, 'has 2 tokens for which the model has no embedding', 'zork', '700')
    folder = copy(zoo('llama'), tmp_path/'special')
    tok = AutoTokenizer.from_pretrained(folder)
    tok.add_special_tokens({'additional_special_tokens': ['<image>']})
    tok.save_pretrained(folder)
    lm = load(folder) # as Gemma 3 has one, which no text holds
    assert same_scores(lm, load(zoo('llama')))
    for ask in (lm.encode, lm.encode_with_offsets):
        with pytest.raises(KdnbError, match="holds the token '<image>'.*no embedding"):
            ask('A <image> of bread')


def test_a_model_with_more_embeddings_than_tokens_gives_scores(zoo, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = copy(zoo('llama'), tmp_path/'lm')
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size = 768
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    assert score_candidates(load(folder), LEFTS, CANDIDATES)
