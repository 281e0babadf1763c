"""From a recipe to a drafter of whatever kind it names."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from specblock.drafters.config import StoredConfig
from specblock.drafters.fingerprint import tokenizer_fingerprint
from specblock.drafters.kind import Training
from specblock.drafters.objectives.sequence import Sequence
from specblock.drafters.registry import KINDS, find_kind, kind_of
from specblock.drafters.starting.lending import attach_target, attention_form
from specblock.errors import CheckpointError, ConfigError
from specblock.target.architecture.structure import text_config
from specblock.training.recipe import DrafterRecipe


def training_kind(name: str) -> Training:
    """Raises :class:`ConfigError` that lists the kinds if it is none of them."""
    kind = find_kind(name)
    if kind is None:
        raise ConfigError(f"There is no drafter kind {name!r}; choose {', '.join(KINDS)}.")
    return kind.training


def warm_start(drafter: nn.Module, target: nn.Module, sequences: list[Sequence]) -> None:
    """Start a drafter of any kind in closed form from ``target`` and some thousand answer tokens.

    Raises :class:`CheckpointError` if there is no such start, or not from this target.
    """
    name = drafter.config.drafter_type
    start = kind_of(name).training.start
    if start is None:
        raise CheckpointError(f"Drafters of kind {name} have no start in closed form.")
    start(drafter, target, sequences)


def default_feature_layers(target_layers: int, drafter_layers: int) -> tuple[int, ...]:
    """Half way up the target, three quarters, and the input of the layers that the drafter copies:
    lower layers tell it less about the next position (docs/experiments.md, 20)."""
    low, middle = target_layers // 2 - 1, 3 * target_layers // 4 - 1
    return max(0, low), max(0, middle), target_layers - drafter_layers - 1


def drafter_config(target: nn.Module, recipe: DrafterRecipe, tokenizer, name: str) -> StoredConfig:
    """A drafter shaped like the target's own layers, reading the input of those it copies.

    Raises :class:`ConfigError` if the recipe asks for what this kind of drafter lacks.
    """
    config, kind = text_config(target), training_kind(recipe.kind)
    cls = kind_of(recipe.kind).config
    count, heads = config.num_hidden_layers, config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    settings = {
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "target_layers": count,
        # the same for all kinds, so that the features of one serve to train the others
        "feature_layers": recipe.feature_layers or default_feature_layers(count, recipe.layers),
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": float(rope.get("rope_theta", 10000.0)),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "target_name": name,
    }
    known = {field.name for field in dataclasses.fields(cls)}
    settings |= attention_form(target)
    settings = {name: value for name, value in settings.items() if name in known}
    for switch in ("layer_shift", "prefix_broadcast"):
        if switch not in known and not getattr(recipe, switch):
            raise ConfigError(f"{recipe.kind} drafters have no {switch} to switch off; drop it.")
    for field in dataclasses.fields(cls):
        chosen = kind.fields.get(field.name, field.name)
        if field.name not in settings and hasattr(recipe, chosen):
            settings[field.name] = getattr(recipe, chosen)
    for name, most in (("slot_rank", config.hidden_size), ("draft_vocab_size", config.vocab_size)):
        if name in known:  # a small target has not so many directions or tokens
            settings[name] = min(settings[name], most)
    return cls(**settings)


@torch.no_grad()
def new_drafter(target: nn.Module, config: StoredConfig, d2t: Tensor, t2d: Tensor) -> nn.Module:
    """A random drafter with its vocabulary map, the target's embeddings and, if so configured,
    its frozen head."""
    drafter = kind_of(config.drafter_type).network(config)
    drafter.d2t.copy_(d2t)
    drafter.t2d.copy_(t2d)
    attach_target(drafter, target, head=config.target_lm_head)
    drafter.lm_head.weight.requires_grad_(not config.target_lm_head)
    return drafter
