"""``specblock bench --concurrency``: many clients at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from specblock.bench.suites.prompts import BenchPrompt
from specblock.cli.options import ExactTarget
from specblock.cli.support import say_step
from specblock.config import GenerationConfig
from specblock.errors import ConfigError


def bench_load(
    concurrency: str,
    methods: str,
    chosen: Sequence[BenchPrompt],
    suite: str,
    config: GenerationConfig,
    out: Path | None,
    *,
    place: ExactTarget,
    drafter: list[str] | None,
) -> None:
    """Measure, and print the table."""
    from specblock.bench.load.report import load_markdown
    from specblock.bench.load.run import measure
    from specblock.target.chat.template import chat_tokens

    try:
        clients = [int(part) for part in concurrency.split(",")]
    except ValueError:
        raise ConfigError("Give --concurrency as numbers of clients: 1,2,4.") from None
    speculator = _load(place, drafter)
    asked = [[*prompt.lead, {"role": "user", "content": prompt.turns[0]}] for prompt in chosen]
    prompts = [chat_tokens(speculator.tokenizer, messages) for messages in asked]
    report = measure(
        speculator,
        prompts,
        clients,
        [name.strip() for name in methods.split(",")],
        config,
        suite=suite,
        out=out,
        progress=lambda turn: typer.echo(
            f"{turn.concurrency} clients, {turn.method}: {turn.tokens / turn.seconds:.1f} tokens/s",
            err=True,
        ),
    )
    typer.echo(load_markdown(report), nl=False)


def _load(place: ExactTarget, drafter: list[str] | None) -> Any:
    if len(drafter or []) > 1:
        raise ConfigError("With --concurrency one --drafter is measured: name one folder.")
    import specblock

    place.use_threads()
    return specblock.load(
        place.model,
        drafter=drafter[0] if drafter else "auto",
        dtype=place.dtype,
        device=place.device,
        exact=place.exact,
        on_step=say_step,
    )
