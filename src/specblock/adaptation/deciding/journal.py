"""What adaptation decided, tried and took back: the log, and its summary by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specblock.adaptation.deciding.bandit import SKIP, Decision
from specblock.adaptation.learning.learner import BETTER, FAILED, NOT_FINITE, Attempt

_LONGEST = 10_000  # rows kept of the log


class Journal:
    """``log`` holds the rows that :func:`specblock.adaptation.deciding.bandit.replay` reads, and an
    ``attempt`` or ``rollback`` row for everything that came of them."""

    def __init__(self, arms: Sequence[str]):
        self.log: list[dict[str, Any]] = []
        self.arms = {
            arm: {"pulls": 0, "swaps": 0, "gain": 0.0, "seconds": 0.0, "rollbacks": 0, "errors": 0}
            for arm in arms
        }
        self.attempts, self.rollbacks, self.failures, self.skips = 0, 0, 0, 0
        self.written = 0  # rows ever, those that the log has lost included

    def _add(self, row: dict[str, Any]) -> None:
        self.log.append(row)
        self.written += 1
        del self.log[:-_LONGEST]

    def since(self, written: int) -> list[dict[str, Any]]:
        """The rows after the first ``written`` ever."""
        count = min(self.written - written, len(self.log))
        return self.log[len(self.log) - count :]

    def decided(
        self,
        context: Sequence[float],
        scale: float,
        costs: Mapping[str, float],
        allowance: float,
        among: Sequence[str],
        decision: Decision,
    ) -> None:
        self.skips += decision.arm == SKIP
        self._add(
            {
                "event": "decide",
                "context": list(context),
                "scale": scale,
                "costs": dict(costs),
                "allowance": allowance,
                "among": list(among),
                "arm": decision.arm,
                "values": decision.values,
            }
        )

    def learned(self, arm: str, context: Sequence[float], gain: float) -> None:
        self._add({"event": "learn", "arm": arm, "context": list(context), "gain": gain})

    def attempted(self, attempt: Attempt) -> None:
        self.attempts += 1
        row = self.arms[attempt.arm]
        row["pulls"] += 1
        row["swaps"] += attempt.outcome == BETTER
        row["gain"] += attempt.gain
        row["seconds"] += attempt.seconds
        row["errors"] += attempt.outcome in (FAILED, NOT_FINITE)
        self._add(
            {
                "event": "attempt",
                "arm": attempt.arm,
                "outcome": attempt.outcome,
                "gain": attempt.gain,
                "seconds": attempt.seconds,
                **(attempt.details or {}),
            }
        )

    def rolled_back(self, arm: str, lost: float) -> None:
        self.rollbacks += 1
        self.arms[arm]["rollbacks"] += 1
        self.arms[arm]["gain"] -= lost
        self._add({"event": "rollback", "arm": arm, "lost": lost})

    def summary(self, costs: Mapping[str, float]) -> dict[str, Any]:
        """Totals, and by arm ``gain`` summed over pulls and ``cost`` expected of the next."""
        arms = {arm: {**row, "cost": costs[arm]} for arm, row in self.arms.items()}
        totals = {name: getattr(self, name) for name in _TOTALS}
        return {"arms": arms, **totals}

    def to_dict(self) -> dict[str, Any]:
        totals = {name: getattr(self, name) for name in _TOTALS}
        return {"log": self.log, "arms": self.arms, **totals}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.log = list(state["log"])
        self.arms = {arm: dict(row) for arm, row in state["arms"].items()}
        for name in _TOTALS:
            setattr(self, name, state[name])


_TOTALS = ("attempts", "rollbacks", "failures", "skips", "written")
