"""From a recipe to a drafter of whatever kind it names."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from specblock.drafters.config import StoredConfig, paper_feature_layers
from specblock.drafters.fingerprint import tokenizer_fingerprint
from specblock.drafters.kind import Training
from specblock.drafters.objectives.sequence import Sequence
from specblock.drafters.registry import KINDS, find_kind, kind_of
from specblock.drafters.starting.head import attach_target
from specblock.drafters.starting.layers import Report, tell
from specblock.drafters.starting.lending import loan_of
from specblock.errors import ConfigError
from specblock.target.architecture.structure import text_config
from specblock.training.recipe import DrafterRecipe


def training_kind(name: str) -> Training:
    """Raises :class:`ConfigError` that lists the kinds if it is none of them."""
    kind = find_kind(name)
    if kind is None:
        raise ConfigError(f"There is no drafter kind {name!r}; choose {', '.join(KINDS)}.")
    return kind.training


def warm_start(
    drafter: nn.Module, target: nn.Module, sequences: list[Sequence], report: Report = tell
) -> None:
    """Start a drafter of any kind in closed form from ``target`` and some thousand answer tokens.

    ``report`` is told how, or that its kind has no such start.
    """
    name = drafter.config.drafter_type
    start = kind_of(name).training.start
    if start is None:
        report(f"drafters of kind {name} have no start in closed form: the layers are random")
    else:
        start(drafter, target, sequences, report)


def default_feature_layers(target_layers: int, drafter_layers: int) -> tuple[int, ...]:
    """Half way up the target, three quarters, and the input of the layers that the drafter copies,
    the last layer's output where it copies none: lower layers tell it less about the next position
    (docs/experiments.md, 20)."""
    low, middle = target_layers // 2 - 1, 3 * target_layers // 4 - 1
    return max(0, low), max(0, middle), target_layers - drafter_layers - 1


def _layers_read(recipe: DrafterRecipe, target_layers: int, copied: int) -> tuple[int, ...]:
    if recipe.for_engines:
        return paper_feature_layers(target_layers)
    return default_feature_layers(target_layers, copied)


def drafter_config(target: nn.Module, recipe: DrafterRecipe, tokenizer, name: str) -> StoredConfig:
    """A drafter shaped like the target's own layers, reading the input of those it copies.

    Raises :class:`ConfigError` if the recipe asks for what this kind of drafter lacks, or the
    target's embeddings are not as wide as its states.
    """
    config, kind = text_config(target), training_kind(recipe.kind)
    cls = kind_of(recipe.kind).config
    loan = loan_of(target, recipe.layers)
    count, copied = config.num_hidden_layers, len(loan.layers)
    width = target.get_input_embeddings().weight.shape[1]
    if width != config.hidden_size:
        raise ConfigError(f"The target's embeddings have {width} numbers a token and its states "
                          f"{config.hidden_size}: no drafter can be trained for it; decode with "
                          "--drafter lookup.")  # fmt: skip
    settings = {
        **dataclasses.asdict(loan.form),
        "vocab_size": config.vocab_size,
        "target_layers": count,
        # the same for all kinds, so that the features of one serve to train the others
        "feature_layers": recipe.feature_layers or _layers_read(recipe, count, copied),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "target_name": name,
    }
    known = {field.name for field in dataclasses.fields(cls)}
    settings = {key: value for key, value in settings.items() if key in known}
    if recipe.for_engines:  # of them vLLM alone has the norms on heads
        settings |= {key: False for key in ("qkv_bias", "qk_norm") if key in known}
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
