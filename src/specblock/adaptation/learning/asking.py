"""Whether budgets may ask a drafter that came with nothing."""

from __future__ import annotations

from collections.abc import Sequence

from specblock.adaptation.learning.learner import Learner
from specblock.drafters.base import Budget

__all__ = ["Asking"]


class Asking:
    """Lets ``budgets`` ask the network of ``learner``, if that pays.

    Attributes:
        pays: whether it does by the last judgement; of a drafter that was trained the budgets know
            themselves, round by round.
    """

    def __init__(self, budgets: Sequence[Budget], learner: Learner):
        self._budgets, self._learner = budgets, learner
        self.forget()

    def forget(self) -> None:
        """Nothing is known of the weights in use."""
        self.pays = self._learner.beginning is None
        self.apply()

    def judged(self, tau: float | None) -> None:
        """The weights to use from now on are accepted for so much; None: nobody looked."""
        if self._learner.beginning is not None and tau is not None:
            self.pays = tau > self._learner.beginning.break_even()

    def apply(self) -> None:
        """Tell the budgets."""
        for budget in self._budgets:
            budget.asking = self._learner.begun and self.pays
