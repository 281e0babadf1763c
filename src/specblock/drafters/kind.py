"""What makes a kind of drafter: its parts, under one name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from specblock.drafters.base import Drafter
from specblock.drafters.config import StoredConfig
from specblock.drafters.objectives.batch import Objective
from specblock.drafters.objectives.sequence import Sequence
from specblock.drafters.objectives.workload import Workload
from specblock.drafters.starting.layers import Report

__all__ = ["DrafterKind", "Recipe", "Training"]


class Recipe(Protocol):
    """What a kind's objective reads of a :class:`specblock.training.recipe.DrafterRecipe`."""

    @property
    def objective(self) -> Any: ...  # specblock.drafters.specblock.objective.ObjectiveConfig

    @property
    def ttt_steps(self) -> int: ...

    @property
    def chain_positions(self) -> int: ...


@dataclass(frozen=True)
class Training:
    """How a recipe becomes a drafter of one kind.

    Attributes:
        objective: takes the recipe and the drafter's config.
        first_slot: the training forward: network, features ``[B, S, F * H]`` and next tokens
            ``[B, S]`` to the hidden states ``[B, S, H]``, before the final norm, that say which
            token follows each pair. What is drafted is held against it.
        start: starts the network in closed form: takes the network, the target, some of its answers
            and what is told how it went. None: its layers start at random.
        workload: takes recipe, config, batch size and longest length. None: nothing is said of the
            memory before training.
        fields: the recipe's name of a setting for every one of the config that has another there.
    """

    objective: Callable[[Recipe, Any], Objective]
    first_slot: Callable[[Any, Tensor, Tensor], Tensor]
    start: Callable[[Any, nn.Module, list[Sequence], Report], None] | None = None
    workload: Callable[[Recipe, Any, int, int], Workload] | None = None
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DrafterKind:
    """One method; its name is the config's ``drafter_type``.

    Attributes:
        config: its class. network: of a config.
        drafter: what decodes with the network, and takes ``settings`` by keyword.
        training: how it is trained.
    """

    config: type[StoredConfig]
    network: Callable[[Any], nn.Module]
    drafter: Callable[..., Drafter]
    settings: tuple[str, ...]
    training: Training

    @property
    def name(self) -> str:
        return self.config.drafter_type
