"""How a drafter that came with nothing begins: in closed form, from what was served."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from specblock.budget.costs import CostTable
from specblock.drafters.objectives.sequence import Sequence
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.start import fitting_input_layer
from specblock.steps import Steps

__all__ = ["FIT_GAIN", "Beginning", "cost_of_a_round"]

# Share of decoding seconds that it is expected to save, until it was tried (docs/experiments.md,
# 45).
FIT_GAIN = 0.15
_MORE = 1.5  # times the pairs of an attempt that failed, before the next
_NODES = 8  # draft nodes of the small tree by which a round's cost is told


@dataclass
class Beginning:
    """What a learner needs to begin.

    Attributes:
        head: [V, H], the target's own, of whose rows the drafter's consists.
        round_cost: plain steps that a drafted round takes, at the time of asking.
        break_even: tokens that it must yield for the budgets to ask for it.
        tried_with: pairs of the last attempt.
    """

    head: Tensor
    round_cost: Callable[[], float]
    break_even: Callable[[], float]
    tried_with: int = 0

    def fitting(self, master: SpecBlockModel, sequences: list[Sequence]) -> Steps[None]:
        """Solve the input layer on what was served; the layers are there already."""
        yield from fitting_input_layer(master, sequences)

    def wanted_pairs(self, master: SpecBlockModel) -> int:
        """Pairs before which an attempt is no use: with fewer the regression has more unknowns than
        equations, or hardly more to go by than the last time."""
        unknowns = (len(master.config.feature_layers) + 1) * master.config.hidden_size + 1
        return max(unknowns, math.ceil(_MORE * self.tried_with))


def cost_of_a_round(costs: CostTable | None) -> float:
    """Plain steps that a round with a small tree takes; 1 where nothing was measured."""
    if costs is None:
        return 1.0
    seconds = costs.draft_first_seconds(1, 1) + costs.target_seconds(1 + _NODES) + costs.overhead
    return seconds / costs.target_seconds(1)
