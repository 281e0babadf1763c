"""What budgets have learned of a drafter's claims, when its weights change."""

from __future__ import annotations

from collections.abc import Sequence

from specblock.budget.survival import SurvivalModel
from specblock.drafters.base import Budget


class Calibrations:
    """The survival models of budgets, put back at a roll-back.

    A change of weights leaves them alone: better weights claim much the same, and the models forget
    by themselves. What was learned of weights that were rolled back says nothing of those that
    return.
    """

    def __init__(self, budgets: Sequence[Budget]):
        self._budgets = budgets
        self._former: list[SurvivalModel] = []

    def changed(self) -> None:
        """Other weights draft from now on."""
        self._former = [budget.model for budget in self._budgets]

    def go_back(self) -> None:
        """The weights before the last change draft again; where that change was made before a
        resume, what was known of them is gone, and what is known now has to do."""
        for budget, model in zip(self._budgets, self._former, strict=False):
            budget.model = model
