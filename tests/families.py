"""Tiny random models of every family that is known to decode trees as it decodes plainly."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from specblock.target.model import Target

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
HEADER = "| family | architecture | tested with |\n|---|---|---|"
VOCABULARY, WINDOW = 97, 8
SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": WINDOW}
NO_GROUPS = {"num_key_value_heads": 4}

SHARED_KEYS = {
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}

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
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
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
    "afmoe": MIXED,
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "axk1": NO_GROUPS,
    "beam": {},
    "biogpt": {},
    "bitnet": {},
    "codegen": {},
    "cohere": {},
    "cohere2": MIXED,
    "cohere2_moe": MIXED,
    "ctrl": {},
    "cwm": {},
    "deepseek_v2": NO_GROUPS,
    "deepseek_v3": NO_GROUPS,
    "diffllama": {},
    "doge": {"keep_window_size": WINDOW},
    "dots1": MIXED,
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": MIXED,
    "exaone_moe": MIXED,
    "falcon": {},
    "falcon (grouped)": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "flex_olmo": {},
    "flint": {},
    "fuyu": {},
    "gemma": {},
    "gemma2": {},
    "gemma3": {
        "text_config": {**SIZES, **MIXED, "head_dim": 8, "query_pre_attn_scalar": 8},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 96,
        "boi_token_index": 95,
        "eoi_token_index": 94,
    },
    "gemma3_text": MIXED,
    "gemma3n_text": {**SHARED_KEYS, "activation_sparsity_pattern": None, "laurel_rank": 4},
    "gemma4": {
        "text_config": {
            **SIZES,
            **SHARED_KEYS,
            "head_dim": 8,
            "global_head_dim": 16,
            "sliding_window": WINDOW,
        },
        "vision_config": {**VISION, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8},
        "audio_config": None,
    },
    "gemma4_text": {**SHARED_KEYS, "global_head_dim": 16},
    "gemma4_text (experts)": {
        **SHARED_KEYS,
        "global_head_dim": 16,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
    "gemma4_unified_text": {**SHARED_KEYS, "global_head_dim": 16},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": NO_GROUPS,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {},
    "gptj": {},
    "granite": {},
    "granite_swa": {},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": {
        "layer_types": [FULL] * 3,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "position_embedding_type": "rope",
    },
    "granitemoeshared": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hyperclovax": {},
    "jais2": {},
    "jetmoe": {},
    "kolibri1": MIXED,
    "laguna": MIXED,
    "llama": {},
    "mellum": MIXED,
    "mimo_v2_flash": {},
    "minicpm3": NO_GROUPS,
    "minimax_m2": {},
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {"local_attention": 2 * WINDOW},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": MIXED,
    "olmoe": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": {},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {},
    "xglm": {},
    "youtu": NO_GROUPS,
}


def model_type(case: str) -> str:
    """The family of a case, which may name a variant in brackets."""
    return case.split(" ")[0]


def make(case: str, seed: int = 0):
    """A random model with lively logits; None where this transformers lacks the family."""
    family = model_type(case)
    if family not in CONFIG_MAPPING or family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None
    config_class = CONFIG_MAPPING[family]
    names = {*inspect.signature(config_class.__init__).parameters, *config_class.attribute_map}
    own = {name: value for name, value in MORE.items() if name in names}
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    torch.manual_seed(seed)
    sizes = {} if "text_config" in CASES[case] else {**SIZES, **own}
    config = config_class(**{**sizes, **CASES[case]})
    attention = "sdpa" if model_class._supports_sdpa else "eager"
    model = model_class._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


def describe(target: Target) -> str:
    """What of a model the test has tried, in words."""
    keys, values = (
        {getattr(layer, part).shape[1::2] for layer in target.cache.layers if layer.is_initialized}
        for part in ("keys", "values")
    )
    heads = target.config.num_attention_heads
    facts = [" and ".join(kind.removesuffix("_attention") for kind in target.kinds) + " attention"]
    if any(count < heads for count, _ in keys):
        facts.append("grouped keys")
    if keys != values:
        facts.append("values of another width")
    if len(keys) > 1:
        facts.append("layers of different shapes")
    if getattr(target.config, "num_kv_shared_layers", 0):
        facts.append("layers that share keys")
    if any("expert" in name for name, _ in target.model.named_parameters()):
        facts.append("experts")
    facts.append("table of positions" if target.positions.limit else "rotary positions")
    if target.model.config._attn_implementation == "eager":
        facts.append("eager")
    return ", ".join(facts)


def row(case: str, target: Target) -> str:
    """A line of the table in docs/models.md, after the target has decoded something."""
    return f"| {case} | {type(target.model).__name__} | {describe(target)} |"


def page() -> str:
    """docs/models.md with the table as this transformers gives it."""
    text = PAGE.read_text(encoding="utf-8")
    lines = []
    for case in CASES:
        target = Target(make(case))
        target.reset(2)
        target.prefill(torch.tensor([3, 4]))
        lines.append(row(case, target))
    text = re.sub(
        r"with transformers [\d.]+", f"with transformers {transformers.__version__}", text
    )
    start = text.index(HEADER) + len(HEADER)
    stop = text.index("\n\n", start)
    return text[:start] + "".join(f"\n{line}" for line in lines) + text[stop:]


if __name__ == "__main__":  # PYTHONPATH=src python -m tests.families
    PAGE.write_text(page(), encoding="utf-8")
