"""``specblock bench --costs``: the same rounds in the seconds of other machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specblock.bench.suites.prompts import BenchPrompt
from specblock.cli.support import say_step
from specblock.config import GenerationConfig
from specblock.errors import ConfigError, SpecBlockError

if TYPE_CHECKING:
    from specblock.bench.measure.methods import MethodSpec
    from specblock.bench.playback.answers import Asked
    from specblock.bench.playback.run import Row
    from specblock.bench.playback.sheet import CostSheet


def bench_playback(
    costs: Sequence[str],
    methods: str,
    chosen: Sequence[BenchPrompt],
    suite: str,
    config: GenerationConfig,
    out: Path | None,
    resume: bool,
    *,
    model: str,
    drafter: list[str] | None,
    dtype: str,
    device: str,
    threads: int | None,
) -> None:
    """Answer the prompts plainly, play the methods on the answers, print the tables.

    Args:
        costs: names or files of cost sheets.
        suite: what the prompts are called in the report.
    """
    import torch

    import specblock
    from specblock.bench.measure.journal import digest_of
    from specblock.bench.measure.weights import find_weights
    from specblock.bench.playback.report import playback_markdown, read_playback
    from specblock.bench.playback.run import check_methods
    from specblock.bench.playback.sheet import find_sheet

    sheets = [find_sheet(name) for name in dict.fromkeys(costs)]
    folders = find_weights(model, drafter or [])
    names = [name.strip() for name in methods.split(",") if name.strip()]
    specs = check_methods(names, sheets, folders)
    if threads is not None:
        torch.set_num_threads(threads)
    settings = {
        "max_new_tokens": config.max_new_tokens,
        "seed": config.seed,
        "suite": suite,
        "prompts": digest_of(chosen),
        "target": Path(model).name,
        "dtype": dtype,
    }
    earlier = _earlier(out, settings, sheets) if resume else ([], [])
    speculator = specblock.load(model, drafter=None, dtype=dtype, device=device, on_step=say_step)
    report = _played(speculator, chosen, specs, sheets, folders, settings, earlier, out)
    typer.echo(playback_markdown(read_playback(report)), nl=False)


def _played(
    speculator: Any,
    chosen: Sequence[BenchPrompt],
    specs: Mapping[str, MethodSpec],
    sheets: Sequence[CostSheet],
    folders: Mapping[str, Path],
    settings: dict[str, Any],
    earlier: tuple[list[Asked], list[Row]],
    out: Path | None,
) -> dict[str, Any]:
    """The report of answers, drawn here where ``earlier`` has none, and of rounds on them."""
    from specblock.bench.environment import describe_environment
    from specblock.bench.playback.answers import ask
    from specblock.bench.playback.report import play_all
    from specblock.bench.playback.run import Player

    answers, done = earlier
    if not answers:
        say_step("plain decoding")
        answers = ask(speculator, chosen, settings["max_new_tokens"], _say_progress)
    if not answers:
        raise SpecBlockError("No prompt could be answered with two tokens or more.")
    player = Player(speculator.target.model, speculator.tokenizer, folders, answers, _say_progress)
    about = {"settings": settings, "environment": describe_environment(speculator)}
    return play_all(player, specs, sheets, about, done, out, say_step)


def _earlier(
    out: Path | None, settings: dict[str, Any], sheets: Sequence[CostSheet]
) -> tuple[list[Asked], list[Row]]:
    """Answers and rows of the report that a run goes on with; none where there is no file."""
    from specblock.bench.playback.answers import Asked
    from specblock.bench.playback.run import Row

    if out is None or not out.exists():
        return [], []
    try:
        report = json.loads(out.read_text(encoding="utf-8"))
        before = {sheet["name"]: sheet for sheet in report["playback"]}
        again = json.loads(json.dumps({sheet.name: sheet.to_dict() for sheet in sheets}))
        same = report["settings"] == settings and before == again
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
