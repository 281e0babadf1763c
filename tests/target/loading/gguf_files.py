"""Small GGUF files, written as llama.cpp's converter writes them, from models that tests make."""

import gguf
import numpy as np
import torch

LLAMA_BPE = "llama-bpe"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 320


def byte_letters():
    """GPT-2's spelling of the 256 bytes, in order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte if byte in plain else next(spare)) for byte in range(256)]


def add_tokenizer(writer, size=VOCABULARY):
    """A byte-level BPE vocabulary: bytes, a few merges, three control tokens, fillers."""
    letters = byte_letters()
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), ("Ġ", "the")]
    tokens = letters + ["".join(pair) for pair in merges] + list(CONTROL)
    kinds = [1] * (256 + len(merges)) + [3] * len(CONTROL)
    fillers = [f"unused{i}" for i in range(size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(LLAMA_BPE)
    writer.add_token_list(tokens + fillers)
    writer.add_token_types(kinds + [5] * len(fillers))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def add_sentencepiece(writer, size=VOCABULARY):
    """A vocabulary as sentencepiece's: control tokens, bytes, characters, a few longer pieces."""
    words = ["▁the", "▁and", "th", "he", "an", "nd", "▁t", "▁a", "en"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<pad>", "</s>", "<s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [3, 3, 3, 2] + [6] * 256 + [1] * (len(letters) + len(words))
    tokens += letters + words
    fillers = [f"<unused{i}>" for i in range(size - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + fillers)
    writer.add_token_types(kinds + [5] * len(fillers))
    writer.add_token_scores([0.0] * 260 + [-float(i) for i in range(size - 260)])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def permuted(weight, heads):
    """Llama's query and key rows as llama.cpp orders them."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def as_stored(name, weight, model, architecture):
    """(name, values) of the tensors that a weight of transformers becomes."""
    config = model.config
    if architecture == "llama" and ".q_proj." in name:
        weight = permuted(weight, config.num_attention_heads)
    if architecture == "llama" and ".k_proj." in name:
        weight = permuted(weight, config.num_key_value_heads)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        weight = weight + 1
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        weight = weight.T
    if name.endswith("experts.gate_up_proj"):
        layer, half = name.split(".")[2], weight.shape[1] // 2
        yield f"blk.{layer}.ffn_gate_exps.weight", weight[:, :half]
        yield f"blk.{layer}.ffn_up_exps.weight", weight[:, half:]
        return
    if name.endswith("experts.down_proj"):
        yield f"blk.{name.split('.')[2]}.ffn_down_exps.weight", weight
        return
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert stored is not None, name
    yield stored, weight


def entries_of(model, architecture):
    """The metadata that llama.cpp's converter writes for such a model."""
    config = model.config
    heads = config.num_attention_heads
    entries = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", heads),
        "feed_forward_length": getattr(config, "intermediate_size", 4 * config.hidden_size),
    }
    rms = getattr(config, "rms_norm_eps", None)
    other = getattr(config, "norm_epsilon", getattr(config, "layer_norm_epsilon", None))
    norm = ("layer_norm_rms_epsilon", rms) if rms is not None else ("layer_norm_epsilon", other)
    entries[f"attention.{norm[0]}"] = norm[1]
    if architecture in ("gemma2", "gemma3", "qwen3", "qwen3moe"):
        entries["attention.key_length"] = entries["attention.value_length"] = config.head_dim
    return entries


def write_gguf(path, model, architecture, *, entries=None, extra=None, quantize=None, words=True):
    """Write a model; ``entries`` are added to those of its config, without the architecture.

    ``extra`` are further tensors, ``quantize`` a type for all matrices, ``words`` False leaves the
    tokenizer out.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    if words:
        add = add_sentencepiece if architecture[:4] in ("gemm", "phi3") else add_tokenizer
        add(writer, model.config.vocab_size)
    for name, value in {**entries_of(model, architecture), **(entries or {})}.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{architecture}.{name}", value)
    tied = model.config.tie_word_embeddings
    tensors = dict(extra or {})
    for name, weight in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            values = weight.detach().float().numpy()
            tensors.update(as_stored(name, values, model, architecture))
    for name, values in tensors.items():
        values = np.ascontiguousarray(values, dtype=np.float32)
        if quantize is not None and values.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(values, quantize), raw_dtype=quantize)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def spread(model, seed=0):
    """Weights large enough that a wrong config shows in the logits; no two norms alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()
