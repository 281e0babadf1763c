"""Many clients at once, method against method: the same requests in turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from specblock.bench.environment import describe_environment
from specblock.bench.load.clients import METHODS
from specblock.bench.load.served import TURNS, Turn, figures
from specblock.bench.measure.methods import PLAIN
from specblock.bench.runner import write_report
from specblock.config import GenerationConfig
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError

__all__ = ["measure"]

_EACH = 2  # requests of a client in a turn, at least

Progress = Callable[[Turn], None]


def measure(
    speculator: Speculator,
    prompts: Sequence[list[int]],
    concurrency: Sequence[int],
    methods: Sequence[str],
    config: GenerationConfig,
    *,
    suite: str = "own",
    out: str | Path | None = None,
    progress: Progress = lambda turn: None,
) -> dict[str, Any]:
    """Serve the same requests by every method, for every number of clients, in turns.

    Args:
        prompts: token ids; as many requests in a turn, or two for each client where that is more.
        config: its seed orders the methods, anew in every turn.
        out: JSON file, replaced after every turn.

    Raises ConfigError for a number or a method that there is not.
    """
    for name in methods:
        if name not in METHODS:
            raise ConfigError(
                f"With --concurrency there is no method '{name}'; known: {', '.join(METHODS)}."
            )
    if any(clients < 1 for clients in concurrency):
        raise ConfigError("Give --concurrency as numbers of clients of 1 or more: 1,2,4.")
    source, turns = random.Random(config.seed), []
    settings = {"suite": suite, "prompts": len(prompts), "generation": config.to_dict()}
    report: dict[str, Any] = {}
    for clients in concurrency:
        wanted = max(len(prompts), _EACH * clients)
        requests = [prompts[number % len(prompts)] for number in range(wanted)]
        for name in methods:  # a warm-up
            METHODS[name](speculator, requests[:clients], config.replace(max_new_tokens=8), clients)
        for _ in range(TURNS):
            for name in source.sample(list(methods), len(methods)):
                turns.append(METHODS[name](speculator, requests, config, clients))
                progress(turns[-1])
            report = {
                "load": figures(turns, PLAIN),
                "environment": describe_environment(speculator),
                "settings": settings,
                "turns": [turn.to_dict() for turn in turns],
            }
            if out is not None:
                write_report(out, report, "turns")
    return report
