"""How a drafter that came with nothing begins: in closed form, from what was served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.budget.costs import CostTable
from specblock.drafters.objectives.sequence import Sequence
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.start import fitting_input_layer
from specblock.steps import Steps

__all__ = ["FIT_GAIN", "Beginning", "cost_of_a_round"]

# Share of decoding seconds that it is expected to save, until it was tried (docs/experiments.md,
# 44).
FIT_GAIN = 0.15
_NODES = 8  # draft nodes of the small tree by which a round's cost is told


@dataclass(frozen=True)
class Beginning:
    """What a learner needs to begin.

    Attributes:
        head: [V, H], the target's own, of whose rows the drafter's consists.
        round_cost: plain steps that a drafted round takes, at the time of asking.
    """

    head: Tensor
    round_cost: Callable[[], float]

    def fitting(self, master: SpecBlockModel, sequences: list[Sequence]) -> Steps[None]:
        """Solve the input layer on what was served; the layers are there already."""
        yield from fitting_input_layer(master, sequences)
        if master.config.sink:
            size = master.config.hidden_size
            first = torch.stack([sequence.features[0, -size:].float() for sequence in sequences])
            with torch.no_grad():
                master.sink.copy_(first.mean(0))

    def least_pairs(self, master: SpecBlockModel) -> int:
        """Pairs below which the regression has more unknowns than equations."""
        return (len(master.config.feature_layers) + 1) * master.config.hidden_size + 1


def cost_of_a_round(costs: CostTable | None) -> float:
    """Plain steps that a round with a small tree takes; 1 where nothing was measured."""
    if costs is None:
        return 1.0
    seconds = costs.draft_first_seconds(1, 1) + costs.target_seconds(1 + _NODES) + costs.overhead
    return seconds / costs.target_seconds(1)
