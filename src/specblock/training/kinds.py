"""What is particular to training each kind of drafter; the only place that tells them apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from specblock.drafters.config import StoredConfig, paper_feature_layers
from specblock.drafters.eagle3 import objective as eagle3
from specblock.drafters.fingerprint import tokenizer_fingerprint
from specblock.drafters.objectives.batch import Objective
from specblock.drafters.objectives.workload import Workload
from specblock.drafters.parallel import objective as parallel
from specblock.drafters.registry import KINDS as NETWORKS
from specblock.drafters.specblock import forward
from specblock.drafters.specblock.objective import SpecBlockObjective
from specblock.drafters.starting.head import attach_target
from specblock.drafters.starting.lending import loan_of
from specblock.errors import ConfigError
from specblock.target.architecture.structure import text_config
from specblock.training.recipe import DrafterRecipe


@dataclass(frozen=True)
class TrainingKind:
    """How a recipe becomes a drafter of one kind.

    ``fields``: the recipe's name of a setting for every one of the drafter's config that has
    another name there. ``objective`` takes the recipe and the drafter's config. ``workload`` takes
    these with batch size and longest length. ``first_slot`` runs the training forward: network,
    features ``[B, S, F * H]`` and next tokens ``[B, S]`` to the hidden states ``[B, S, H]``, before
    the final norm, that say which token follows each pair.
    """

    fields: dict[str, str]
    objective: Callable[[DrafterRecipe, Any], Objective]
    workload: Callable[[DrafterRecipe, Any, int, int], Workload]
    first_slot: Callable[[Any, Tensor, Tensor], Tensor]


def _specblock_objective(recipe: DrafterRecipe, config: Any) -> Objective:
    return SpecBlockObjective(recipe.objective, config.block_size)


def _specblock_workload(recipe: DrafterRecipe, config: Any, batch: int, length: int) -> Workload:
    chosen, blocks = min(recipe.objective.positions, length), recipe.objective.blocks
    slots = config.block_size
    later = batch * chosen * slots * blocks
    seen = length * config.slots_kept + slots * (blocks + 1) // 2
    rows = batch * length
    return Workload(rows * config.slots_kept, later, blocks, seen, rows + later)


def _eagle3_objective(recipe: DrafterRecipe, _config: Any) -> Objective:
    return eagle3.Eagle3Objective(
        recipe.ttt_steps, recipe.objective.slot_decay, recipe.chain_positions
    )


def _eagle3_workload(recipe: DrafterRecipe, _config: Any, batch: int, length: int) -> Workload:
    steps, rows = recipe.ttt_steps, batch * length
    later = batch * min(recipe.chain_positions or length, length) * (steps - 1)
    return Workload(rows, later, steps - 1, length + steps // 2, rows + later)


def _parallel_objective(recipe: DrafterRecipe, config: Any) -> Objective:
    decay = recipe.objective.slot_decay
    return parallel.ParallelObjective(config.positions, decay, recipe.chain_positions)


def _parallel_workload(recipe: DrafterRecipe, config: Any, batch: int, length: int) -> Workload:
    rows = batch * min(recipe.chain_positions or length, length) * (config.positions - 1)
    return Workload(batch * length, 0, 0, 0, batch * length + rows)


TRAINING = {
    "specblock": TrainingKind(
        {"num_hidden_layers": "layers"},
        _specblock_objective,
        _specblock_workload,
        lambda model, features, tokens: forward.run_trunk(model, features, tokens).hidden[:, :, 0],
    ),
    "eagle3": TrainingKind(
        {},
        _eagle3_objective,
        _eagle3_workload,
        lambda model, features, tokens: eagle3.run_trunk(model, features, tokens).hidden,
    ),
    "parallel": TrainingKind(
        {"num_hidden_layers": "layers", "positions": "block_size"},
        _parallel_objective,
        _parallel_workload,
        parallel.run_trunk,
    ),
}


def training_kind(name: str) -> TrainingKind:
    """Raises :class:`ConfigError` that lists the kinds if it is none of them."""
    if name not in TRAINING:
        raise ConfigError(f"There is no drafter kind {name!r}; choose {', '.join(TRAINING)}.")
    return TRAINING[name]


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
    cls = NETWORKS[recipe.kind].config
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
    drafter = NETWORKS[config.drafter_type].network(config)
    drafter.d2t.copy_(d2t)
    drafter.t2d.copy_(t2d)
    attach_target(drafter, target, head=config.target_lm_head)
    drafter.lm_head.weight.requires_grad_(not config.target_lm_head)
    return drafter
