"""``specblock bench adapt``: policies of adaptation on a stream of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specblock.cli import options
from specblock.cli.flags import Flags
from specblock.cli.support import verb
from specblock.cli.tables import console, figure
from specblock.config import GenerationConfig
from specblock.errors import ConfigError

if TYPE_CHECKING:
    from specblock.adaptation.replay.stream import Request
    from specblock.bench.suites.prompts import BenchPrompt


@verb
def adapt(
    *,
    stream: Annotated[
        Path | None,
        typer.Option(help="JSONL file of prompts in order.", show_default="our own, short"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first N prompts.")] = None,
    policies: Annotated[
        str, typer.Option(help="Names, comma-separated: never, memory, bandit, always-ARM.")
    ] = "never,always-full,always-heads,bandit",
    config: Annotated[GenerationConfig, Flags(max_new_tokens=128)],
    json_out: options.JsonOut = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves to this file.")] = None,
    poison: Annotated[
        str | None,
        typer.Option(help="Let the feedback of requests FIRST:LAST lie, to see it contained."),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--config", help="YAML or JSON file of adaptation settings.")
    ] = None,
    place: options.Speculating,
) -> None:
    """Replay a stream under policies of adaptation; one that was cut off goes on."""
    from specblock.adaptation.config import AdaptationConfig
    from specblock.adaptation.replay.stream import check_policies, replay_stream
    from specblock.bench.environment import describe_environment

    names = [name.strip() for name in policies.split(",") if name.strip()]
    check_policies(names)
    adapt = AdaptationConfig.from_file(settings) if settings else AdaptationConfig(seed=config.seed)
    prompts, lying = _prompts(stream, limit), _range(poison)
    speculator = place.open()
    report = replay_stream(
        speculator,
        _requests(prompts, speculator.tokenizer),
        policies=names,
        config=config,
        adapt=adapt,
        out=json_out,
        seed=config.seed,
        poison=lying,
        environment=describe_environment(speculator),
        progress=_say_progress,
    )
    _say_result(report, plot)


def _prompts(stream: Path | None, limit: int | None) -> list[BenchPrompt]:
    from specblock.bench.suites.prompts import load_prompts
    from specblock.data import SHIFTING_STREAM

    return load_prompts(stream or SHIFTING_STREAM, limit)


def _requests(prompts: Sequence[BenchPrompt], tokenizer: Any) -> list[Request]:
    """The first turn of every prompt, if the chat template takes them all."""
    from specblock.adaptation.replay.stream import Request
    from specblock.bench.suites.prompts import check_templates

    check_templates(tokenizer, prompts)
    return [
        Request(p.id, p.task, [*p.lead, {"role": "user", "content": p.turns[0]}]) for p in prompts
    ]


def _range(text: str | None) -> tuple[int, int] | None:
    """``FIRST:LAST``, counted from 0, the last excluded."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ConfigError(f"--poison takes FIRST:LAST, such as 20:40, not '{text}'.")
    return int(first), int(last)


def _say_progress(done: int, of: int, report: dict[str, Any]) -> None:
    parts = [
        f"{name} {figure(row['tokens_per_second'])} tokens/s"
        for name, row in report["policies"].items()
    ]
    typer.echo(f"{done}/{of}  {'  '.join(parts)}", err=True)


def _say_result(report: dict[str, Any], plot: Path | None) -> None:
    from rich import box
    from rich.table import Table

    from specblock.adaptation.replay.report import draw, regret_told

    if plot is not None:
        draw(report, plot)
    table = Table(box=box.SIMPLE)
    titles = ("policy", "tokens/s", "τ", "updates", "swaps", "update s", "roll-backs", "won s")
    for title in titles:
        table.add_column(title, justify="left" if title == "policy" else "right")
    for name, row in report["policies"].items():
        won = report["won_seconds"].get(name) or [0.0]
        table.add_row(
            name,
            figure(row["tokens_per_second"], 2),
            figure(row["accepted_length"], 3),
            str(row["updates"]),
            str(row["swaps"]),
            figure(row["update_seconds"]),
            str(row["rollbacks"]),
            f"{won[-1]:+.1f}",
        )
    out = console()
    out.print(table)
    for name, lengths in report.get("poison", {}).items():
        told = ", ".join(f"{phase} {figure(tau, 3)}" for phase, tau in lengths.items())
        out.print(f"{name}: accepted length {told} the feedback lied", highlight=False)
    if report["regret"]:
        out.print(regret_told(**report["regret"]), highlight=False)
