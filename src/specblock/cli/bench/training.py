"""``specblock bench training``: how fast this machine regenerates answers and trains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from specblock.cli import options
from specblock.cli.flags import Flags
from specblock.cli.support import verb
from specblock.errors import SpecBlockError
from specblock.storage import write_atomically


@verb
def training(
    *,
    answers: Annotated[Path, typer.Option(help="Answers of `specblock regenerate`.")],
    kind: Annotated[str, typer.Option(help="specblock, eagle3 or parallel.")] = "specblock",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps under the clock.")] = 12,
    limit: Annotated[int, typer.Option(min=1, help="Answers to read.")] = 256,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens per drawn answer.")] = 64,
    place: Annotated[options.Target, Flags(dtype="bfloat16")],
    report: options.JsonOut = None,
) -> None:
    """Measure tokens per second of every part of training, and memory; keeps nothing."""
    from specblock.bench.costs.training import measure_training
    from specblock.bench.environment import describe_environment
    from specblock.target.chat.ends import end_tokens
    from specblock.training.data.answers import check_answers, read_answers
    from specblock.training.recipe import DrafterRecipe

    network, tokenizer = place.load()
    rows = read_answers(answers, limit=limit)
    check_answers(rows, network, answers)
    recipe = DrafterRecipe(kind=kind)
    if len(rows) < recipe.train.batch_sequences:
        raise SpecBlockError(f"{answers} holds {len(rows)} answers, fewer than one batch takes.")
    ends = end_tokens(network, tokenizer)
    speed = measure_training(
        network, tokenizer, rows, recipe, ends, steps=steps, new_tokens=new_tokens,
        report=lambda line: typer.echo(f"{line} ...", err=True),
    )  # fmt: skip
    found = {"kind": kind, **dataclasses.asdict(speed), "environment": describe_environment()}
    if report is not None:
        write_atomically(report, json.dumps(found, indent=1) + "\n")
    typer.echo(f"regenerate  {speed.regenerate_tokens_per_second:8.0f} answer tokens/s")
    typer.echo(f"features    {speed.feature_tokens_per_second:8.0f} tokens/s, prompts included")
    typer.echo(f"train       {speed.train_tokens_per_second:8.0f} answer tokens/s")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in speed.shares.items())
    typer.echo(f"a step      {speed.seconds_per_step:8.2f} s: {shares}")
    typer.echo(f"memory      {speed.peak_memory_bytes / 2**30:8.1f} GiB at most so far")
