"""What a text may lose against plain decoding: no drafter and no copy can lose more."""

from __future__ import annotations

from specblock.budget.averages import Recent


class Account:
    """The plain steps that a text may still lose.

    A text starts with `CREDIT`; every token adds `ALLOWANCE`, and every round what it won or lost
    against plain decoding; won steps are kept up to `CEILING`. Where texts on balance lose most of
    what they are granted, later ones are granted less.

    Attributes:
        left: the plain steps, at least 0 if rounds cost no more than it when they fail.
        tokens, steps: of this text so far, plain steps by the cost table.
    """

    CREDIT, ALLOWANCE, CEILING = 0.7, 0.02, 6.0
    # Recent texts together win or lose so many times what they were granted: from ENOUGH on the
    # next is granted the whole, down to a share of LEAST_TRUST at TOO_LITTLE. By what was granted,
    # not by the texts that won: a share once small would leave none enough to win anything.
    ENOUGH, TOO_LITTLE, LEAST_TRUST = -0.2, -0.6, 0.05

    def __init__(self) -> None:
        self._won, self._tried = Recent(0.95, 0.0, 8.0), False
        self.left, self.tokens, self.steps = 0.0, 0, 0.0
        self.begin()

    @classmethod
    def granted(cls, tokens: int) -> float:
        """What a text of so many tokens may lose in all."""
        return cls.CREDIT + cls.ALLOWANCE * tokens

    def begin(self) -> None:
        """Another text.

        What one had no use for is added to the next one's credit, up to the whole: small shares add
        up to a round, or nobody would find out that texts have become better.
        """
        unused = 0.0 if self._tried else self.left
        if self._tried:
            granted = self._credit + self._trust * self.ALLOWANCE * self.tokens
            self._won.add(self.tokens - self.steps, granted)
        trust = (self._won.ratio - self.TOO_LITTLE) / (self.ENOUGH - self.TOO_LITTLE)
        self._trust = min(1.0, max(self.LEAST_TRUST, trust))
        self._credit = self.left = min(self.CREDIT, unused + self._trust * self.CREDIT)
        self.tokens, self.steps, self._tried = 0, 0.0, False

    def book(self, tokens: int, steps: float, *, tried: bool) -> None:
        """A round that yielded ``tokens`` in the time of so many plain steps.

        ``tried``: it was more than a plain step.
        """
        self.tokens, self.steps = self.tokens + tokens, self.steps + steps
        won = tokens * (1.0 + self._trust * self.ALLOWANCE) - steps
        self.left = min(self.left + won, self.CEILING)
        self._tried |= tried
