"""Tiny models with random weights, one for each thing that real models differ in, made once a session.

`zoo(name)` gives the folder of a model (for 'gguf' its file): it is for reading only. Copy it to change it."""

import json

import pytest

BEGIN, END = '<begin>', '<end>'


def special(tokenizer, front='', back=''):
    "A copy of a tokenizer that puts a token before and after each text."
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    names = {'bos_token': BEGIN} if front else {}
    if front:
        core.add_special_tokens([BEGIN])
    single = ' '.join(t for t in (front, '$A', back) if t)
    core.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(t, core.token_to_id(t)) for t in {front, back} - {''}]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END, **names)


def metaspace(texts):
    "A tokenizer in the manner of sentencepiece: a space is a character, and one stands before each text."
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram())
    core.normalizer, core.pre_tokenizer, core.decoder = (
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(),
        decoders.Metaspace(),
    )
    core.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=700, special_tokens=['<unk>', END], unk_token='<unk>', show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token='<unk>', eos_token=END, pad_token=END)


# name -> (architecture, what differs in its configuration, which tokenizer)
MODELS = {
    'llama': ('llama', {}, 'plain'),
    'gpt2': ('gpt2', {}, 'plain'),
    'qwen2': ('qwen2', {}, 'plain'),
    'gemma3': ('gemma3', {}, 'begin'),
    'gpt_neox': ('gpt_neox', {}, 'plain'),
    'opt': ('opt', {}, 'begin'),
    'sentencepiece': ('llama', {}, 'metaspace'),
    'gpt2_64': ('gpt2', {'n_positions': 64}, 'plain'),
    'llama_64': ('llama', {'max_position_embeddings': 64}, 'plain'),
    'llama_bos': ('llama', {}, 'begin'),
    'llama_begin_end': ('llama', {}, 'begin end'),
    'llama_eos': ('llama', {}, 'end'),
    'bert': ('bert', {}, 'begin end'),
    'bart': ('bart', {}, 'begin end'),
}
NAMES = (*MODELS, 'gguf')


def config_of(kind, vocab):
    import transformers as t
    from conftest import tiny_config

    of = dict(vocab_size=vocab, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    if kind == 'opt':
        return t.OPTConfig(
            **of,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            init_std=0.25,
        )
    if kind == 'bert':
        return t.BertConfig(
            vocab_size=vocab,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.25,
            pad_token_id=0,
        )
    if kind == 'bart':
        return t.BartConfig(
            **of,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
        )
    return tiny_config(kind, vocab)


def write_gguf(path, model, tokenizer):
    "A Llama with a byte-level tokenizer as a GGUF file in float32, as llama.cpp would write it."
    import gguf

    c, w = model.config, gguf.GGUFWriter(path, 'llama')
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    w.add_rope_freq_base(c.rope_parameters['rope_theta'])
    w.add_vocab_size(c.vocab_size)
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = sorted(core['model']['vocab'], key=core['model']['vocab'].get)
    w.add_tokenizer_model('gpt2')
    w.add_tokenizer_pre('gpt-2')
    w.add_token_list(vocab)
    w.add_token_types([3 if t == END else 1 for t in vocab])
    w.add_token_merges([' '.join(m) for m in core['model']['merges']])
    w.add_bos_token_id(vocab.index(END))
    w.add_eos_token_id(vocab.index(END))
    w.add_pad_token_id(vocab.index(END))
    w.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    heads = {'q_proj': c.num_attention_heads, 'k_proj': c.num_key_value_heads}
    for n, t in model.state_dict().items():
        if n == 'lm_head.weight':
            continue  # tied
        for k, h in heads.items():  # llama.cpp rotates pairs of neighbours, transformers halves
            if k in n:
                t = t.reshape(h, 2, -1, t.shape[1]).swapaxes(1, 2).reshape(t.shape)
        w.add_tensor(f'{names.get_name(n.removesuffix(".weight"))}.weight', t.contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def texts_of(ds):
    return [e.definition for e in ds.entities] + [p.prompt for e in ds.entities for p in e.probes]


@pytest.fixture(scope='session')
def zoo(ds, tokenizer, tmp_path_factory):
    "Function of a name of `NAMES`: the folder of that model, or its GGUF file."
    made, toks = (
        {},
        {
            'plain': lambda: tokenizer,
            'begin': lambda: special(tokenizer, BEGIN),
            'begin end': lambda: special(tokenizer, BEGIN, END),
            'end': lambda: special(tokenizer, '', END),
            'metaspace': lambda: metaspace(texts_of(ds)),
        },
    )

    def build(name, folder):
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

        kind, differs, which = MODELS['llama' if name == 'gguf' else name]
        tok = toks[which]()
        config = config_of(kind, len(tok))
        for k, v in differs.items():
            setattr(config, k, v)
        torch.manual_seed(0)
        model = {'bert': AutoModelForMaskedLM, 'bart': AutoModelForSeq2SeqLM}.get(
            kind, AutoModelForCausalLM
        ).from_config(config)
        if name == 'gguf':
            folder.mkdir()
            write_gguf(folder / 'tiny.gguf', model, tok)
            return folder / 'tiny.gguf'
        model.save_pretrained(folder)
        tok.save_pretrained(folder)
        return folder

    def make(name):
        if name not in made:
            made[name] = build(name, tmp_path_factory.mktemp('zoo') / name)
        return made[name]

    return make
