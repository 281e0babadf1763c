"""``specblock bench``: plain decoding against SpecBlock on a file of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from specblock.cli import options
from specblock.cli.support import open_speculator, verb
from specblock.cli.tables import console, figure, methods_table
from specblock.config import GenerationConfig


@verb
def bench(
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL file (.zst too) with messages or turns.", show_default="our own"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first N prompts.")] = None,
    methods: Annotated[str, typer.Option(help="Names, comma-separated.")] = "plain,specblock",
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    json_out: options.JsonOut = None,
    model: options.Model = options.DEFAULT_MODEL,
    drafter: options.Drafter = "auto",
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    budget: Annotated[
        str, typer.Option(help="measured: by this machine's costs; fixed: 60 nodes every round.")
    ] = "measured",
) -> None:
    """Measure methods against each other, interleaved prompt by prompt."""
    from specblock.bench import load_prompts, run
    from specblock.data import OWN_PROMPTS

    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    names = [name.strip() for name in methods.split(",") if name.strip()]
    chosen = load_prompts(prompts or OWN_PROMPTS, limit)
    speculator = open_speculator(model, drafter, dtype, device, threads, budget=budget)
    report = run(
        speculator,
        chosen,
        methods=names,
        config=config,
        seed=seed,
        out=json_out,
        progress=_say_progress,
    )
    _say_result(report)


def _say_progress(done: int, of: int, report: dict[str, Any]) -> None:
    """One line to stderr after every prompt; a terminal overwrites it."""
    parts = [
        f"{name} {figure(row['tokens_per_second'])} tokens/s"
        for name, row in report["methods"].items()
    ]
    at_terminal = console(stderr=True).is_terminal
    typer.echo(
        f"{chr(13) if at_terminal else ''}{done}/{of}  {'  '.join(parts)}  ",
        err=True,
        nl=not at_terminal or done == of,
    )


def _say_result(report: dict[str, Any]) -> None:
    out = console()
    out.print(methods_table(report["methods"]))
    for item in report["divergences"]:
        margin = "no margin" if item["margin"] is None else f"margin {item['margin']:.2g}"
        out.print(
            f"{item['id']}: {item['method']} differs from plain at token {item['position']} "
            f"({item['kind']}, {margin})",
            highlight=False,
        )
    for item in report["skipped"]:
        out.print(f"{item['id']}: skipped: {item['reason']}", highlight=False, markup=False)
