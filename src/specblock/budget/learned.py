"""What the budgets of all texts know together."""

from __future__ import annotations

from specblock.budget.averages import Recent
from specblock.budget.costs import CostTable
from specblock.budget.drag import Drag
from specblock.budget.survival import SurvivalModel

__all__ = ["Learned", "Means"]


class Means:
    """Running means over the last 50 rounds or so.

    Attributes:
        speedup: tokens by the plain steps that their rounds took.
        gain: tokens that a later block adds where the walk ends at its leaf.
        asking: tokens that the network adds where the copies end at the root.
    """

    def __init__(self) -> None:
        self.speedup = Recent(0.98, 1.0, 1.0)
        self.gain = Recent(0.98, 4.0, 4.0)
        self.asking = Recent(0.98, 4.0, 4.0)


class Learned:
    """What is learned from the rounds of every text.

    Attributes:
        costs: the measured table. model: how far drafts can be trusted.
        drag: what the clock says of the table; heeded if ``heed_clock`` is set.
        asking: whether the network may be asked at all.
    """

    def __init__(self, costs: CostTable, model: SurvivalModel | None, heed_clock: bool):
        self.costs, self.model = costs, model or SurvivalModel.fresh()
        self.drag, self.heed_clock = Drag(), heed_clock
        self.asking = True
        self._means: dict[int, Means] = {}

    def means(self, texts: int) -> Means:
        """For steps of about so many texts (1, 2-3, 4-7, ...): what pays depends on it."""
        return self._means.setdefault(texts.bit_length(), Means())

    def price(self, texts: int) -> float:
        """Tokens that a second of a step of so many texts is worth, at least the plain rate."""
        plain = texts / self.costs.target_seconds(texts, texts)
        return max(1.0, self.means(texts).speedup.ratio) * plain
