"""``specblock bench --costs``: the same rounds in the seconds of other machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specblock.bench.suites.prompts import BenchPrompt
from specblock.cli.support import say_step
from specblock.errors import ConfigError

if TYPE_CHECKING:
    from specblock.bench.playback.answers import Asked
    from specblock.bench.playback.run import Row


def bench_playback(
    costs: Sequence[str],
    methods: str,
    chosen: Sequence[BenchPrompt],
    settings: dict[str, Any],
    drafters: list[str],
    placement: tuple[str, str, str, int | None],
    out: Path | None,
    resume: bool,
) -> None:
    """Answer the prompts plainly, play the methods on the answers, print the tables.

    Args:
        costs: names or files of cost sheets.
        settings: what a resumed run must have in common: ``max_new_tokens``, ``seed``, ``suite``.
        placement: model, dtype, device, threads.
    """
    import torch

    import specblock
    from specblock.bench.environment import describe_environment
    from specblock.bench.measure.weights import find_weights
    from specblock.bench.playback.answers import ask
    from specblock.bench.playback.report import play_all, playback_markdown, read_playback
    from specblock.bench.playback.run import Player, check_methods
    from specblock.bench.playback.sheet import find_sheet

    sheets = [find_sheet(name) for name in dict.fromkeys(costs)]
    model, dtype, device, threads = placement
    folders = find_weights(model, drafters)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    specs = check_methods(names, sheets, folders)
    if threads is not None:
        torch.set_num_threads(threads)
    answers, done = _earlier(out, settings) if resume else ([], [])
    speculator = specblock.load(model, drafter=None, dtype=dtype, device=device, on_step=say_step)
    if not answers:
        say_step("plain decoding")
        answers = ask(speculator, chosen, settings["max_new_tokens"], _say_progress)
    network = speculator.target.model
    player = Player(network, speculator.tokenizer, folders, answers, _say_progress)
    about = {"settings": settings, "environment": describe_environment(speculator)}
    report = play_all(player, specs, sheets, about, done, out, say_step)
    typer.echo(playback_markdown(read_playback(report)), nl=False)


def _earlier(out: Path | None, settings: dict[str, Any]) -> tuple[list[Asked], list[Row]]:
    """Answers and rows of the report that a run goes on with; none where there is no file."""
    from specblock.bench.playback.answers import Asked
    from specblock.bench.playback.run import Row

    if out is None or not out.exists():
        return [], []
    try:
        report = json.loads(out.read_text(encoding="utf-8"))
        same = report["settings"] == settings
        answers = [Asked.from_dict(one) for one in report["answers"]]
        rows = [Row(**row) for row in report["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{out} is no report of `bench --costs`: name another file.") from None
    if not same:
        raise ConfigError(f"{out} was made with other settings: leave --resume out, or the change.")
    return answers, rows


def _say_progress(done: int, of: int) -> None:
    if done == of or done % 10 == 0:
        typer.echo(f"{done}/{of}", err=True)
