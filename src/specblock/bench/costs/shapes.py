"""Sizes of models people deploy, so that drafting can be timed without anyone's weights."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from specblock.drafters.checkpoint import EMBEDDINGS
from specblock.drafters.config import paper_feature_layers
from specblock.drafters.registry import KINDS
from specblock.errors import ConfigError

__all__ = ["DRAFTERS", "SHAPES", "Shape", "drafter_network", "find_shape", "own_parameters"]


@dataclass(frozen=True)
class Shape:
    """A target of ``model_type`` (transformers' name) and the drafters' vocabulary for it.

    ``sizes`` are fields that transformers' config and ours call alike.
    """

    model_type: str
    layers: int
    vocab_size: int
    draft_vocab_size: int
    rope_theta: float
    sizes: Mapping[str, int]
    tied: bool = False  # output head = input embeddings

    def target_config(self) -> Any:
        """The target's configuration for transformers."""
        from transformers import AutoConfig

        return AutoConfig.for_model(
            self.model_type,
            **self.sizes,
            num_hidden_layers=self.layers,
            vocab_size=self.vocab_size,
            max_position_embeddings=8192,
            tie_word_embeddings=self.tied,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
        )


def _sizes(hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


SHAPES = {
    "llama-3.1-8b": Shape("llama", 32, 128256, 32000, 5e5, _sizes(4096, 14336, 32, 8, 128)),
    "qwen3-8b": Shape("qwen3", 36, 151936, 32000, 1e6, _sizes(4096, 12288, 32, 8, 128)),
    "embedded": Shape("llama", 30, 49152, 12288, 1e5, _sizes(576, 1536, 9, 3, 64), tied=True),
}
# Drafters whose cost is compared: their kind, and what they differ in from the papers' defaults.
DRAFTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "eagle3": ("eagle3", {}),
    "specblock": ("specblock", {}),
    "specblock, 1 slot kept": ("specblock", {"cached_slots": 1}),
    "parallel": ("parallel", {}),
}


def find_shape(name: str) -> Shape:
    """Raises :class:`ConfigError` for a name that is not in ``SHAPES``."""
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(SHAPES)}."
        raise ConfigError(f"There is no shape '{name}'; {hint}")
    return SHAPES[name]


def drafter_network(shape: Shape, name: str) -> nn.Module:
    """A drafter out of ``DRAFTERS`` for the shape, with random weights, on the default device."""
    kind, changes = DRAFTERS[name]
    config = KINDS[kind].config(
        **shape.sizes,
        vocab_size=shape.vocab_size,
        draft_vocab_size=shape.draft_vocab_size,
        target_layers=shape.layers,
        feature_layers=paper_feature_layers(shape.layers),
        rope_theta=shape.rope_theta,
        **changes,
    )
    build: Callable[[Any], nn.Module] = KINDS[kind].network
    return build(config).eval().requires_grad_(False)


def own_parameters(model: nn.Module) -> int:
    """Parameters that a drafter adds to the target: all but the target's embeddings."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(EMBEDDINGS))
