"""Tiny models with random weights, one for each difference between real models, made once a session.

`zoo(name)` gives the folder of a model (for gguf its file), which is for reading only: copy it to change it.
"""

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
    added = [(t, core.token_to_id(t)) for t in {front, back} - {''}]
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=added)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END, **names)


def metaspace(texts):
    "A tokenizer in the manner of sentencepiece: a space is a character, and one stands before each text."
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=700, special_tokens=['<unk>', END], unk_token='<unk>', show_progress=False)
    core.train_from_iterator(texts, trainer)
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
    'bart': ('bart', {}, 'begin end')}
NAMES = (*MODELS, 'gguf')


def tiny_config(kind, vocab, layers=2):
    "The configuration of a tiny model of an architecture."
    import transformers as t

    ends = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    wide = dict(intermediate_size=64)
    if kind in ('gpt2', 'gptj'):
        config = dict(gpt2=t.GPT2Config, gptj=t.GPTJConfig)[kind]
        rotary = dict(rotary_dim=8) if kind == 'gptj' else {}
        return config(
            vocab_size=vocab, n_embd=32, n_layer=layers, n_head=2, n_positions=512,
            initializer_range=.25, bos_token_id=0, eos_token_id=0, **rotary)
    if kind == 'gpt_neo':
        return t.GPTNeoConfig(
            vocab_size=vocab, hidden_size=32, num_layers=layers, num_heads=2,
            attention_types=[[['global', 'local'], layers//2]], max_position_embeddings=512,
            initializer_range=.25, bos_token_id=0, eos_token_id=0)
    if kind == 'bart':
        return t.BartConfig(
            vocab_size=vocab, d_model=32, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
            decoder_ffn_dim=64, decoder_start_token_id=0, forced_eos_token_id=None, **ends)
    common = dict(vocab_size=vocab, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2)
    if kind == 'bert':
        return t.BertConfig(**common, **wide, initializer_range=.25, pad_token_id=0)
    common.update(max_position_embeddings=512, **ends)
    if kind == 'opt': return t.OPTConfig(**common, word_embed_proj_dim=32, ffn_dim=64, init_std=.25)
    common.update(initializer_range=.25, **wide)
    if kind == 'gpt_neox': return t.GPTNeoXConfig(**common)
    one_head = dict(num_key_value_heads=1)
    if kind == 'qwen2': return t.Qwen2Config(**common, **one_head)
    if kind == 'llama': return t.LlamaConfig(**common, **one_head, tie_word_embeddings=True)
    if kind == 'mistral': return t.MistralConfig(**common, **one_head, tie_word_embeddings=True)
    if kind == 'gemma3': return t.Gemma3TextConfig(**common, **one_head, head_dim=16)
    if kind == 'qwen3': return t.Qwen3Config(**common, **one_head, head_dim=16)
    raise ValueError(f'no tiny configuration of {kind}')


def odd_config(kind, vocab):
    "Tiny configurations of models whose results depend on padding, positions or a cache."
    import transformers as t

    of = dict(
        vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.25, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        max_position_embeddings=256)
    wide, kv = dict(intermediate_size=64), dict(num_key_value_heads=1)
    state = dict(vocab_size=vocab, hidden_size=32, num_hidden_layers=2, initializer_range=0.25)
    ours = dict(max_position_embeddings=258, pad_token_id=1)
    return {
        'gemma2': lambda: t.Gemma2Config(**of, **wide, **kv, head_dim=16, sliding_window=24),
        'gemma3': lambda: t.Gemma3TextConfig(
            **(of | dict(num_hidden_layers=6)), **wide, **kv, head_dim=16, sliding_window=16),
        'gpt_oss': lambda: t.GptOssConfig(
            **of, **wide, **kv, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=16),
        'llama4': lambda: t.Llama4TextConfig(
            **of, **wide, **kv, head_dim=16, intermediate_size_mlp=64, num_local_experts=2,
            attention_chunk_size=16),
        'modernbert': lambda: t.ModernBertDecoderConfig(**of, **wide, local_attention=24),
        'mpt': lambda: t.MptConfig(
            vocab_size=vocab, d_model=32, n_layers=2, n_heads=2, max_seq_len=256, initializer_range=0.25),
        'roberta': lambda: t.RobertaConfig(**(of | ours), **wide, is_decoder=True),
        'bart': lambda: t.BartConfig(
            vocab_size=vocab, d_model=32, decoder_layers=2, decoder_attention_heads=2,
            decoder_ffn_dim=64, init_std=0.25, is_decoder=True, is_encoder_decoder=False,
            max_position_embeddings=256, pad_token_id=1),
        'git': lambda: t.GitConfig(
            **of, **wide,
            vision_config=dict(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                image_size=16, patch_size=8)),
        'rwkv': lambda: t.RwkvConfig(
            **state, attention_hidden_size=32, intermediate_size=64, context_length=256),
        'dynamic': lambda: t.LlamaConfig(
            **(of | dict(max_position_embeddings=32)), **wide,
            rope_parameters={'rope_type': 'dynamic', 'factor': 8.0, 'rope_theta': 10000.0}),
        'openai': lambda: t.OpenAIGPTConfig(
            vocab_size=vocab, n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.25),
        'rembert': lambda: t.RemBertConfig(
            **of, **wide, is_decoder=True, input_embedding_size=16, output_embedding_size=32),
        'mamba': lambda: t.MambaConfig(**state, state_size=4),
        'mamba2': lambda: t.Mamba2Config(
            **state, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
        'jamba': lambda: t.JambaConfig(
            **of, **wide, **kv, num_experts=2, attn_layer_period=2, attn_layer_offset=1,
            expert_layer_period=2, expert_layer_offset=1, use_mamba_kernels=False, mamba_d_state=4,
            mamba_dt_rank=4),
        'qwen3_next': lambda: t.Qwen3NextConfig(
            **of, **wide, **kv, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2,
            linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1,
            moe_intermediate_size=16, shared_expert_intermediate_size=16),
        'mixtral': lambda: t.MixtralConfig(**of, **wide, **kv, num_local_experts=4),
        'deepseek': lambda: t.DeepseekV3Config(
            **of, **wide, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=8, n_group=1, topk_group=1, first_k_dense_replace=1),
        'olmoe': lambda: t.OlmoeConfig(**of, **wide, num_experts=4, num_experts_per_tok=2),
        'reformer': lambda: t.ReformerConfig(
            vocab_size=vocab, is_decoder=True, hidden_size=32, num_attention_heads=2,
            attention_head_size=16, feed_forward_size=64, axial_pos_embds=False,
            max_position_embeddings=256, attn_layers=['local', 'local'], local_attn_chunk_length=8)}[kind]()


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
    w.add_rope_dimension_count(c.hidden_size//c.num_attention_heads)
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
            continue # tied
        for k, h in heads.items(): # llama.cpp rotates pairs of neighbours, transformers halves
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
    made = {}
    toks = {
        'plain': lambda: tokenizer, 'begin': lambda: special(tokenizer, BEGIN),
        'begin end': lambda: special(tokenizer, BEGIN, END),
        'end': lambda: special(tokenizer, '', END), 'metaspace': lambda: metaspace(texts_of(ds))}

    def build(name, folder):
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

        kind, differs, which = MODELS['llama' if name == 'gguf' else name]
        tok = toks[which]()
        config = tiny_config(kind, len(tok))
        for k, v in differs.items():
            setattr(config, k, v)
        torch.manual_seed(0)
        auto = {'bert': AutoModelForMaskedLM, 'bart': AutoModelForSeq2SeqLM}.get(kind, AutoModelForCausalLM)
        model = auto.from_config(config)
        if name == 'gguf':
            folder.mkdir()
            write_gguf(folder/'tiny.gguf', model, tok)
            return folder/'tiny.gguf'
        model.save_pretrained(folder)
        tok.save_pretrained(folder)
        return folder

    def make(name):
        if name not in made:
            made[name] = build(name, tmp_path_factory.mktemp('zoo')/name)
        return made[name]

    return make
