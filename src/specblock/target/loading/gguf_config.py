"""A transformers config that says what a GGUF file says.

transformers reads a part of a file's metadata and takes its own defaults for the rest, without a
word. Here every entry of the file's architecture is either in the config in the end, or the file
is refused by that entry's name. Entries are those of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from specblock.errors import ModelError
from specblock.target.loading.gguf_file import GgufFile

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["READABLE", "faithful_config"]

# architectures of which a test compares the logits with those of the model the file was made from
READABLE = frozenset(
    ("llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "starcoder2", "gpt2")
)
# entry -> the names that configs have for it
FIELDS = {
    "context_length": ("max_position_embeddings",),
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts",),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
}
TOKENS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "padding_token_id",
}
# entries that say nothing about the computation, if they have this value (None: any)
SILENT = {
    "vocab_size": None,  # the embedding matrix says it
    "attention.causal": True,
    "pooling_type": 0,
    "tensor_data_layout": None,  # how llama's rows are permuted; the reader knows
    "rope.scaling.finetuned": None,
    "rope.scaling.type": None,  # from here on: see _rope
    "rope.scaling.factor": None,
    "rope.scaling.original_context_length": None,
    "rope.scaling.attn_factor": None,
    "rope.scaling.yarn_beta_fast": None,
    "rope.scaling.yarn_beta_slow": None,
    "rope.scale_linear": None,
    "rope.dimension_count": None,
    "rope.freq_base": None,
    "rope.freq_base_swa": None,
}
# Llama 3.1's stretched rope as all of its releases have it; a file holds only its result
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Gemma's largest models scale attention by another width than their heads'; a file does not say so
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


def faithful_config(file: GgufFile, config: PretrainedConfig) -> PretrainedConfig:
    """``config``, as transformers reads it from the file, with everything that the file says.

    Raises:
        ModelError: the file says something that this kind of model cannot be told.
    """
    if file.architecture == "llama" and "attention.sliding_window" in file.own:
        # files of Mistral's models call themselves llama; only Mistral's config knows a window
        from transformers import MistralConfig

        config = MistralConfig.from_dict({**config.to_dict(), "model_type": "mistral"})
    own = {name: _scalar(value) for name, value in file.own.items()}
    for name, value in own.items():
        for field in FIELDS.get(name, ()):
            if hasattr(config, field):
                setattr(config, field, value)
    if hasattr(config, "head_dim"):
        default = config.hidden_size // config.num_attention_heads  # llama.cpp's
        config.head_dim = own.get("attention.key_length", default)
    for name, entry in TOKENS.items():
        setattr(config, name, file.values.get(f"tokenizer.ggml.{entry}"))
    config.vocab_size = file.shapes["token_embd.weight"][0]
    config.tie_word_embeddings = "output.weight" not in file.shapes
    if file.architecture in GEMMA_27B_LAYERS:
        large = config.num_hidden_layers == GEMMA_27B_LAYERS[file.architecture]
        width = config.hidden_size // config.num_attention_heads if large else config.head_dim
        config.query_pre_attn_scalar = width
    _set_rope(file, config, own)
    for name, value in own.items():
        _check_said(file, config, name, value)
    return type(config).from_dict(config.to_dict())  # what a config derives, derived again


def _scalar(value: object) -> object:
    """An entry for every layer as one number, if it is the same in all."""
    same = isinstance(value, list) and value and all(item == value[0] for item in value)
    return value[0] if same else value


def _head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _check_said(file: GgufFile, config: PretrainedConfig, name: str, value: object) -> None:
    """Refuse an entry that the config does not say."""
    said = {getattr(config, field) for field in FIELDS.get(name, ()) if hasattr(config, field)}
    if name in ("attention.key_length", "attention.value_length"):
        said = {_head_dim(config)}
    if name == "attention.head_count_kv" and not said:  # a kind without grouped heads
        said = {config.num_attention_heads}
    if name in SILENT and SILENT[name] in (None, value):
        return
    if said != {value}:
        raise ModelError(
            f"{file.path} cannot be used: it says {file.architecture}.{name} = {value}, which "
            f"transformers' {config.model_type} cannot be told."
        )


def _set_rope(file: GgufFile, config: PretrainedConfig, own: dict[str, object]) -> None:
    """Base, share and scaling of the rotary positions."""
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        if any(name.startswith("rope.") for name in own) or file.rope:
            raise ModelError(
                f"{file.path} has rotary positions, which {config.model_type} has not."
            )
        return
    full, sliding = rope.get("full_attention", rope), rope.get("sliding_attention", rope)
    full["rope_theta"] = own.get("rope.freq_base", full["rope_theta"])
    if "rope.freq_base_swa" in own:
        sliding["rope_theta"] = own["rope.freq_base_swa"]
    if full["rope_theta"] != own.get("rope.freq_base", full["rope_theta"]):
        raise ModelError(f"{file.path} has two rope bases, which {config.model_type} has not.")
    share = own.get("rope.dimension_count", _head_dim(config)) / _head_dim(config)
    if share != full.get("partial_rotary_factor", 1.0):
        if "partial_rotary_factor" not in full:
            raise ModelError(
                f"{file.path} cannot be used: it rotates {share:.0%} of each head, which "
                f"transformers' {config.model_type} cannot be told."
            )
        full["partial_rotary_factor"] = share
    full.update(_scaling(file, config, own, full["rope_theta"]))
    config.rope_parameters = rope


def _scaling(file: GgufFile, config: PretrainedConfig, own: dict, base: float) -> dict[str, object]:
    """How the positions are stretched, as transformers says it; empty where they are not."""
    kind = own.get("rope.scaling.type", "linear" if "rope.scale_linear" in own else "none")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0))
    original = own.get("rope.scaling.original_context_length")
    attention = own.get("rope.scaling.attn_factor")
    if "rope_freqs.weight" in file.rope:
        return _llama3(file, base, _head_dim(config))
    if "rope_factors_long.weight" in file.rope:
        config.original_max_position_embeddings = original
        found = {
            "rope_type": "longrope",
            "long_factor": file.rope["rope_factors_long.weight"].tolist(),
            "short_factor": file.rope["rope_factors_short.weight"].tolist(),
            "original_max_position_embeddings": original,
        }
        return found | ({} if attention is None else {"attention_factor": attention})
    if attention not in (None, 1.0):
        raise ModelError(f"{file.path} scales attention in a way that cannot be told transformers.")
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn" or original is None:
        raise ModelError(f"{file.path} stretches its positions in an unknown way ('{kind}').")
    betas = {
        "beta_fast": own.get("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": own.get("rope.scaling.yarn_beta_slow", 1.0),
    }
    yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    return yarn | betas


def _llama3(file: GgufFile, base: float, head_dim: int) -> dict[str, object]:
    """Llama 3.1's scaling, recognised by the factors that it makes."""
    found = file.rope["rope_freqs.weight"].astype(np.float64)
    factor = float(found.max())
    if factor == 1.0:
        return {}
    low, high, original = LLAMA3.values()
    waves = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
        raise ModelError(
            f"{file.path} cannot be used: it scales its rotary frequencies by factors of its own, "
            "which transformers cannot be told."
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}
