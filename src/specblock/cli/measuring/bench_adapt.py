"""``specblock bench-adapt``: policies of adaptation on a stream of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specblock.cli import options
from specblock.cli.support import open_speculator, verb
from specblock.cli.tables import console, figure
from specblock.errors import ConfigError

if TYPE_CHECKING:
    from specblock.adaptation.replay.played import KnownAnswer
    from specblock.adaptation.replay.stream import Request
    from specblock.engine.speculator import Speculator


_Stream = Annotated[
    Path | None, typer.Option(help="JSONL file of prompts in order.", show_default="our own, short")
]
_Answers = Annotated[
    Path | None,
    typer.Option(help="Answers of 'specblock regenerate': played back by the measured costs."),
]
_Policies = Annotated[
    str,
    typer.Option(
        help="Names, comma-separated: plain, never, lookup, memory, always-ARM, bandit, day0; "
        "behind one that learns +at-once: not in gaps."
    ),
]
_Load = Annotated[
    str | None,
    typer.Option(
        help="Let requests arrive, at shares of the machine's time: 0.3,0.6,0.9. Those that learn "
        "do so in the gaps of each."
    ),
]
_Poison = Annotated[
    str | None,
    typer.Option(help="Let the feedback of requests FIRST:LAST lie, to see it contained."),
]


@verb
def bench_adapt(
    stream: _Stream = None,
    answers: _Answers = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first N.")] = None,
    policies: _Policies = "never,always-full,always-heads,bandit",
    load: _Load = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    json_out: options.JsonOut = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves to this file.")] = None,
    poison: _Poison = None,
    settings: Annotated[
        Path | None, typer.Option("--config", help="YAML or JSON file of adaptation settings.")
    ] = None,
    model: options.Model = options.DEFAULT_MODEL,
    drafter: options.Drafter = "auto",
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
) -> None:
    """Replay a stream under policies of adaptation; one that was cut off goes on."""
    from specblock.adaptation.config import AdaptationConfig
    from specblock.adaptation.replay.contenders import names_of
    from specblock.adaptation.replay.run import compare_policies
    from specblock.adaptation.replay.stream import Plan
    from specblock.bench.environment import describe_environment
    from specblock.config import GenerationConfig

    asked, loads = _names(policies), _loads(load)
    names_of(asked, loads)
    adapt = AdaptationConfig.from_file(settings) if settings else AdaptationConfig(seed=seed)
    lying = _range(poison)
    speculator = _opened(model, drafter, dtype, device, threads)
    requests = _known(answers, stream, limit) if answers else _requests(stream, limit, speculator)
    config = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    plan = Plan(asked, loads, seed, lying, describe_environment(speculator), json_out)
    report = compare_policies(
        speculator, requests, plan, adapt=adapt, config=None if answers else config,
        progress=_say_progress,
    )  # fmt: skip
    _say_result(report, plot)


def _opened(model: str, drafter: str, dtype: str, device: str, threads: int | None) -> Speculator:
    """With a drafter that has not begun for ``day0``: contenders get adaptations of their own."""
    import torch

    from specblock.adaptation.day0 import empty_drafter
    from specblock.engine.loading import assemble
    from specblock.engine.named_drafter import DAY0
    from specblock.target.loading.zoo import load_model

    if drafter != DAY0:
        return open_speculator(model, drafter, dtype, device, threads)
    torch.set_num_threads(threads or torch.get_num_threads())
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    return assemble(network, tokenizer, empty_drafter(network, tokenizer), owned=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _loads(text: str | None) -> list[float]:
    try:
        return [float(part) for part in _names(text or "")]
    except ValueError as error:
        raise ConfigError(f"--load takes shares such as 0.3,0.6, not '{text}'.") from error


def _known(path: Path, stream: Path | None, limit: int | None) -> list[KnownAnswer]:
    """Answers in the order of the file, of the domains that ``stream`` names by id."""
    from specblock.adaptation.replay.played import KnownAnswer
    from specblock.bench.suites.prompts import load_prompts
    from specblock.training.data.answers import read_answers

    tasks = {p.id: p.task for p in load_prompts(stream, None)} if stream else {}
    known = read_answers(path, min_tokens=2)
    if stream:
        order = {name: place for place, name in enumerate(tasks)}
        known = sorted((a for a in known if a.id in order), key=lambda a: order[a.id])
    return [KnownAnswer(a.id, tasks.get(a.id, "all"), a) for a in known[:limit]]


def _requests(stream: Path | None, limit: int | None, speculator: Speculator) -> list[Request]:
    """The first turn of every prompt, if the chat template takes them all."""
    from specblock.adaptation.replay.stream import Request
    from specblock.bench.suites.prompts import check_templates, load_prompts
    from specblock.data import SHIFTING_STREAM

    prompts = load_prompts(stream or SHIFTING_STREAM, limit)
    check_templates(speculator.tokenizer, prompts)
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
    for load, policies in report["loads"].items():
        for name, times in policies.items():
            out.print(
                f"load {load}, {name}: answered after {figure(times['mean'], 2)} s in the mean, "
                f"{figure(times['p95'], 2)} s in the 95th percentile",
                highlight=False,
            )
    if report["regret"]:
        out.print(regret_told(**report["regret"]), highlight=False)
