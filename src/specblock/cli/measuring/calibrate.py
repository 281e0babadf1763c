"""``specblock calibrate``: measure what a forward costs on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from specblock.cli import options
from specblock.cli.support import verb
from specblock.cli.tables import console
from specblock.errors import ConfigError

if TYPE_CHECKING:
    from specblock.engine.speculator import Speculator


@verb
def calibrate(
    *,
    place: options.Speculating,
    survival: Annotated[
        Path | None,
        typer.Option(
            help="JSONL of prompts: also learn how far to trust the drafter (not the shipped one) "
            "and keep it in its folder."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts to learn from.")] = 40,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the table as one JSON object.")
    ] = False,
) -> None:
    """Measure the cost table anew and keep it for this machine, model, dtype and threads.

    Where no number of threads is named also for one thread, which is what decoding falls back to
    beside a busy process.
    """
    import torch

    for count in [place.threads] if place.threads else sorted({1, torch.get_num_threads()}):
        speculator = place.replace(threads=count).open(calibrate="force")
    if survival is not None:
        _learn(speculator, Path(place.drafter), survival, limit)
    costs = speculator.costs.to_dict()
    if as_json:
        typer.echo(json.dumps(costs))
        return
    console().print(costs_table(costs))


def _learn(speculator: Speculator, folder: Path, prompts: Path, limit: int) -> None:
    from specblock.budget.survival_file import save_survival
    from specblock.engine.machine.trust import learn_survival
    from specblock.training.data.prompts import read_prompts

    if not folder.is_dir():
        raise ConfigError("--survival writes into the drafter's folder: name it with --drafter.")
    vocabulary = speculator.target.vocab_size
    rows = read_prompts(
        prompts, speculator.tokenizer, limit=limit, max_tokens=512, vocabulary=vocabulary
    )
    model = learn_survival(
        speculator,
        [row.ids for row in rows],
        on_prompt=lambda number, stats: typer.echo(
            f"prompt {number} of {len(rows)}: accepted length {stats.accepted_length:.2f}", err=True
        ),
    )
    save_survival(model, folder)


def costs_table(costs: dict) -> Table:
    """Milliseconds by rows: the target's forward, the drafter's first block and its later ones."""
    columns = {
        "target": "target forward",
        "draft_first": "drafter, first block",
        "draft_next": "drafter, next block",
    }
    table = Table(box=box.SIMPLE, title="milliseconds by rows")
    table.add_column("rows", justify="right")
    for title in columns.values():
        table.add_column(title, justify="right")
    measured = {name: {int(n): s for n, s in costs[name].items()} for name in columns}
    for rows in sorted(set().union(*measured.values())):
        cells = (measured[name].get(rows) for name in columns)
        table.add_row(str(rows), *("" if s is None else f"{1000 * s:.1f}" for s in cells))
    return table
