"""What a turn of clients got, and the figures of all turns."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["TURNS", "Request", "Turn", "figures"]

TURNS = 3  # in which every method serves the same requests


@dataclass(frozen=True)
class Request:
    """One answer: its new ``tokens``, seconds from asking to the first of them, and to the last."""

    tokens: int
    first: float
    last: float

    @property
    def each(self) -> float:
        """Seconds a token after the first."""
        return (self.last - self.first) / max(1, self.tokens - 1)


@dataclass(frozen=True)
class Turn:
    """The same requests, by one method with so many clients.

    Attributes:
        seconds: from the first question to the last answer.
        steps: forwards of the target; nodes: draft nodes verified in them. None where the method
            does not say.
    """

    method: str
    concurrency: int
    seconds: float
    requests: list[Request]
    steps: int | None = None
    nodes: int | None = None

    @property
    def tokens(self) -> int:
        return sum(request.tokens for request in self.requests)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Turn:
        return cls(**{**data, "requests": [Request(**request) for request in data["requests"]]})


@dataclass
class _Found:
    rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    tokens: int = 0
    steps: int = 0
    nodes: int = 0
    counted: bool = True


def figures(turns: Iterable[Turn], over: str) -> dict[int, dict[str, dict[str, float | None]]]:
    """By number of clients and method.

    ``tokens_per_second`` of all clients and ``ratio`` to the method ``over`` in the same turn,
    medians of turns; ``first`` and ``each``: seconds to a request's first token and a token
    afterwards, the median and the 95th percentile of all requests; ``tokens_per_step`` and
    ``nodes_per_step``.
    """
    found: dict[int, dict[str, _Found]] = {}
    by_turn: dict[tuple[int, int], dict[str, Turn]] = {}
    seen: dict[tuple[int, str], int] = {}
    for turn in turns:
        number = seen.setdefault((turn.concurrency, turn.method), 0)
        seen[turn.concurrency, turn.method] += 1
        by_turn.setdefault((turn.concurrency, number), {})[turn.method] = turn
    for (clients, _), methods in by_turn.items():
        for name, turn in methods.items():
            own = found.setdefault(clients, {}).setdefault(name, _Found())
            own.rates.append(turn.tokens / turn.seconds)
            if over in methods:
                own.ratios.append(own.rates[-1] / (methods[over].tokens / methods[over].seconds))
            own.requests += turn.requests
            own.counted &= turn.steps is not None
            own.tokens += turn.tokens
            own.steps, own.nodes = own.steps + (turn.steps or 0), own.nodes + (turn.nodes or 0)
    return {
        clients: {name: _summed(own) for name, own in methods.items()}
        for clients, methods in found.items()
    }


def _summed(found: _Found) -> dict[str, float | None]:
    steps = found.steps if found.counted and found.steps else None
    first, each = ([getattr(r, name) for r in found.requests] for name in ("first", "each"))
    return {
        "tokens_per_second": statistics.median(found.rates),
        "ratio": statistics.median(found.ratios) if found.ratios else None,
        "first": statistics.median(first),
        "first_95": float(np.quantile(first, 0.95)),
        "each": statistics.median(each),
        "each_95": float(np.quantile(each, 0.95)),
        "tokens_per_step": found.tokens / steps if steps else None,
        "nodes_per_step": found.nodes / steps if steps else None,
    }
