"""Whether the accepted length has dropped since the weights changed, beyond noise."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

# Rounds of one request resemble each other: a mean over rounds is as noisy as one over half as many
# independent ones.
_DESIGN_EFFECT = 2.0
_EARLIEST = 24  # rounds; before that nothing is judged
_INTERIM = 1.3  # looking again and again finds a drop by chance: thresholds are wider until the end
_KEEP = 0.998  # of what is usual, with every round: some 500 rounds are remembered


@dataclass
class Moments:
    """Discounted count, sum and sum of squares of tokens per round."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float, keep: float = 1.0) -> None:
        self.count = self.count * keep + 1.0
        self.total = self.total * keep + value
        self.squares = self.squares * keep + value * value

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def error(self) -> float:
        """Squared standard error of the mean."""
        if not self.count:
            return math.inf
        variance = max(self.squares / self.count - self.mean**2, 0.0)
        return _DESIGN_EFFECT * variance / self.count


@dataclass
class TauWatch:
    """Compares the rounds after a change of weights with those before.

    ``window`` rounds after the change; ``z`` standard errors at its end, 1.3 times as many before.
    """

    window: int
    z: float
    before: Moments = field(default_factory=Moments)
    after: Moments | None = None

    @property
    def watching(self) -> bool:
        return self.after is not None

    def begin(self) -> None:
        """The weights have changed."""
        if self.after is not None:  # changed again: what the last ones did counts as before
            self._merge()
        self.after = Moments()

    def add(self, tokens: int) -> str | None:
        """One more round; ``"dropped"``, ``"passed"`` at the end of the window, or None."""
        if self.after is None:
            self.before.add(tokens, _KEEP)
            return None
        self.after.add(tokens)
        done = self.after.count >= self.window
        if self.after.count < _EARLIEST or self.before.count < _EARLIEST:
            verdict = "passed" if done else None
        elif self.drop > (self.z if done else _INTERIM * self.z) * self._noise():
            verdict = "dropped"
        else:
            verdict = "passed" if done else None
        if verdict == "passed":
            self._merge()
        return verdict

    def rolled_back(self) -> None:
        """The weights from before are back."""
        self.after = None

    @property
    def drop(self) -> float:
        """Tokens per round that were lost."""
        return 0.0 if self.after is None else self.before.mean - self.after.mean

    def relative_drop(self) -> float:
        return self.drop / self.before.mean if self.before.mean else 0.0

    def _noise(self) -> float:
        # a handful of equal rounds has no variance of its own to show: pooled
        both = Moments(
            self.before.count + self.after.count,
            self.before.total + self.after.total,
            self.before.squares + self.after.squares,
        )
        variance = max(self.before.error * self.before.count, both.error * both.count)
        return math.sqrt(variance * (1 / self.before.count + 1 / self.after.count))

    def _merge(self) -> None:
        self.before, self.after = self.after, None

    def to_dict(self) -> dict:
        return {"before": asdict(self.before)}

    def restore(self, state: dict) -> None:
        """What was usual before; a watch that a kill cut off begins anew."""
        self.before = Moments(**state["before"])
