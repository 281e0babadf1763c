"""``config.json`` of an EAGLE-3 drafter in the two layouts that engines read."""

from __future__ import annotations

from typing import Any

from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.published_config import LAYERS
from specblock.integrations.export.target_facts import TargetFacts

__all__ = ["authors_config", "speculators_config"]

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_FLAGS = ("norm_before_residual", "norm_before_fc", "norm_output")
_CHAIN = 5  # tokens a round that the file proposes to vLLM, as most published ones do


def authors_config(config: Eagle3Config, target: TargetFacts, dtype: str) -> dict[str, Any]:
    """That of the paper's authors, which all engines read.

    Where the features come from is said twice, for two engines count differently: vLLM reads the
    outer list, of what enters a layer; SGLang the one in ``eagle_config``, of what leaves it.
    """
    fields = _layer_fields(config, target, dtype)
    return {
        "architectures": [_architecture(config)],
        **fields,
        "draft_vocab_size": config.draft_vocab_size,
        "tie_word_embeddings": False,
        **{name: target.config.get(name) for name in _TOKENS},
        **{name: True for name in _FLAGS if getattr(config, name)},
        LAYERS: [layer + 1 for layer in config.feature_layers],
        "eagle_config": {LAYERS: list(config.feature_layers), "use_aux_hidden_state": True},
    }


def speculators_config(config: Eagle3Config, target: TargetFacts, dtype: str) -> dict[str, Any]:
    """That of *speculators*, from which vLLM serves the target with the drafter by itself."""
    method = {"proposal_type": "greedy", "speculative_tokens": _CHAIN}
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.3.0",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [method],
            "verifier": {"architectures": target.architectures, "name_or_path": target.name},
        },
        "transformer_layer_config": _layer_fields(config, target, dtype),
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": None,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        LAYERS: [layer + 1 for layer in config.feature_layers],
        **{name: getattr(config, name) for name in _FLAGS},
        "fc_norm": config.feature_norm,
    }


def _architecture(config: Eagle3Config) -> str:
    return "Eagle3Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLMEagle3"


def _layer_fields(config: Eagle3Config, target: TargetFacts, dtype: str) -> dict[str, Any]:
    """The decoder layer in transformers' terms."""
    same = (
        *("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling"),
    )
    return {
        "model_type": "qwen3" if config.qk_norm else "llama",
        **{name: getattr(config, name) for name in same},
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        # as long as the target's: engines cut the context to the shorter of the two
        "max_position_embeddings": target.config["max_position_embeddings"],
        "torch_dtype": dtype,
    }
