"""``specblock check``: is a drafter served as it was trained?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from specblock.cli import options
from specblock.cli.support import say_step, verb
from specblock.cli.tables import console, figure
from specblock.errors import ConfigError
from specblock.storage import write_atomically

if TYPE_CHECKING:
    from specblock.training.evaluate.served import Agreement

DIFFERS = 1  # exit code


@verb
def check(
    drafter: Annotated[
        Path | None,
        typer.Option(help="Folder of the drafter.", show_default="the one that ships"),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL of prompts.", show_default="our own"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts to answer.")] = 7,
    max_new_tokens: options.MaxNewTokens = 48,
    model: options.Model = options.DEFAULT_MODEL,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    json_out: options.JsonOut = None,
) -> None:
    """Decode texts, put them through the training forward, and compare step by step.

    Ends with 1 if decoding and training differ by more than rounding does.
    """
    import torch

    from specblock.data import OWN_PROMPTS
    from specblock.engine.loading import load_drafter, shipped_drafter
    from specblock.target.loading.zoo import load_model
    from specblock.target.model import text_config
    from specblock.training.data.prompts import read_prompts
    from specblock.training.evaluate.served import compare

    if threads is not None:
        torch.set_num_threads(threads)
    folder = drafter or shipped_drafter(model)
    if folder is None:
        raise ConfigError(f"No drafter ships for {model}: name one with --drafter.")
    network, tokenizer = load_model(model, dtype=dtype, device=device)
    served = load_drafter(folder, network, tokenizer)
    asked, vocabulary = prompts or OWN_PROMPTS, text_config(network).vocab_size
    rows = read_prompts(asked, tokenizer, limit=limit, max_tokens=512, vocabulary=vocabulary)
    say_step(f"answering {len(rows)} prompts with {folder}")
    found = compare(network, served, [row.ids for row in rows], max_new_tokens=max_new_tokens)
    console().print(agreement_table(found))
    if json_out is not None:
        write_atomically(json_out, json.dumps(asdict(found), indent=1) + "\n")
    for problem in found.problems():
        typer.echo(problem)
    if found.problems():
        raise typer.Exit(DIFFERS)
    typer.echo("The drafter is served as it was trained.")


def agreement_table(found: Agreement) -> Table:
    """What was compared, a row each."""
    rows: dict[str, Any] = {
        "features, largest difference (share of their norm)": f"{found.feature_error:.1e}",
        "first drafted token, mean difference (nats)": f"{found.log_prob_error:.1e}",
        "first drafted token, same best one": f"{found.best_agrees:.1%}",
        "tau decoding": figure(found.tau_served, 3),
        "tau played back": figure(found.tau_played_back, 3),
    }
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("rounds", str(found.rounds))
    for title, cell in rows.items():
        table.add_row(title, cell)
    return table
