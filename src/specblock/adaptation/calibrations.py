"""What budgets have learned of a drafter's claims, when its weights change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specblock.budget.survival import SurvivalModel
from specblock.drafters.base import Budget

_KEPT = 0.25  # of the evidence: other weights claim otherwise, but much the same


class Calibrations:
    """The survival models of budgets, aged at a change and put back at a roll-back.

    What was learned of weights that were rolled back says nothing of those that return.
    """

    def __init__(self, budgets: Sequence[Budget]):
        self._budgets = budgets
        self._former: list[SurvivalModel] = []

    def changed(self) -> None:
        """Other weights draft from now on."""
        self._former = [budget.model for budget in self._budgets]
        for budget in self._budgets:
            budget.model = replace(budget.model, counts=budget.model.counts * _KEPT)

    def go_back(self) -> None:
        """The weights before the last change draft again; where that change was made before a
        resume, what was known of them is gone, and they are a change like any other."""
        if not self._former:
            self.changed()
            return
        for budget, model in zip(self._budgets, self._former, strict=True):
            budget.model = model
