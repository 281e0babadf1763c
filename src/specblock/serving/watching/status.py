"""``/status``: figures for people, no text of anybody."""

from __future__ import annotations

import time
from typing import Any

from specblock.engine.loading import UNMEASURED
from specblock.engine.speculator import Speculator
from specblock.serving.watching.watch import Watch

__all__ = ["drafter_name", "status"]


def status(speculator: Speculator, watch: Watch, model: str) -> dict[str, Any]:
    """What the page shows."""
    running, waiting = speculator.engine.counts
    costs = speculator.costs
    step = None if costs is None or costs is UNMEASURED else costs.target_seconds(1)
    return {
        "model": model,
        "drafter": drafter_name(speculator),
        "running": running,
        "waiting": waiting,
        "max_running": speculator.engine.most_running,
        "tokens_per_second": watch.tokens_per_second,
        "plain_tokens_per_second": 1 / step if step else None,
        "accepted_length": watch.accepted_length,
        "generated_tokens": watch.generated_tokens,
        "cached_tokens": watch.cached_tokens,
        "requests": watch.requests,
        "uptime_seconds": time.monotonic() - watch.started,
        "adaptation": None if watch.learned is None else _adaptation(watch.learned),
    }


def drafter_name(speculator: Speculator) -> str | None:
    """The drafter's kind; None decodes plainly."""
    if speculator.drafter is None:
        return None
    return type(speculator.drafter).__name__.removesuffix("Drafter").lower()


def _adaptation(told: dict[str, Any]) -> dict[str, Any]:
    arms = told["arms"]
    return {
        "updates": sum(arm["swaps"] for arm in arms.values()),
        "rolled_back": told.get("rollbacks", 0),
        "memory_tokens": told["memory_tokens"],
        "gain": told.get("gain", 0.0),
        "decisions": {**{name: arm["pulls"] for name, arm in arms.items()}, "skip": told["skips"]},
        "update_seconds": told["update_seconds"],
    }
