"""Tiny random models of every family that is known to decode trees as it decodes plainly."""

from __future__ import annotations

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, WINDOW = 97, 8
SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": WINDOW}
NO_GROUPS = {"num_key_value_heads": 4}

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# what a configuration calls its own, where it has it
MORE = {
    "head_dim": 8,
    "sliding_window": WINDOW,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "query_pre_attn_scalar": 8,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "rotary_dim": 4,
    "n_positions": 128,
}

CASES: dict[str, dict] = {
}


def make(family: str, seed: int = 0):
    """A random model with lively logits; None where this transformers lacks the family."""
    if family not in CONFIG_MAPPING or family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    config_class = CONFIG_MAPPING[family]
    known = config_class()
    sizes = {**SIZES, **{name: value for name, value in MORE.items() if hasattr(known, name)}}
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    torch.manual_seed(seed)
    config = config_class(**{**sizes, **CASES[family]})
    attention = "sdpa" if model_class._supports_sdpa else "eager"
    model = model_class._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()
