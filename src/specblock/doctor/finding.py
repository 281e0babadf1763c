"""What a check says."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["OK", "SKIPPED", "VERDICTS", "WARNING", "WRONG", "Finding", "Verdict"]

OK, SKIPPED, WARNING, WRONG = "ok", "skipped", "warning", "wrong"
VERDICTS = (OK, SKIPPED, WARNING, WRONG)  # the worst comes last

Figures = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        name: of the check. verdict: one of :data:`VERDICTS`.
        found: what was found, in words. figures: the same as JSON values.
        advice: what to do; empty where there is nothing.
        seconds: how long the check took.
    """

    name: str
    verdict: str
    found: str
    figures: Figures = field(default_factory=dict)
    advice: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a number that JSON cannot say is null."""
        return {**asdict(self), "figures": _said(self.figures)}


@dataclass(frozen=True)
class Verdict:
    """What a check returns; its name and time are the caller's to add."""

    verdict: str
    found: str
    figures: Figures
    advice: str = ""

    def named(self, name: str, seconds: float) -> Finding:
        return Finding(name, self.verdict, self.found, self.figures, self.advice, seconds)


def ok(found: str, **figures: Any) -> Verdict:
    return Verdict(OK, found, figures)


def warning(found: str, advice: str, **figures: Any) -> Verdict:
    return Verdict(WARNING, found, figures, advice)


def wrong(found: str, advice: str, **figures: Any) -> Verdict:
    return Verdict(WRONG, found, figures, advice)


def skipped(found: str) -> Verdict:
    return Verdict(SKIPPED, found, {})


def _said(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _said(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_said(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
