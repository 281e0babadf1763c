"""``specblock calibrate``: measure what a forward costs on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from specblock.cli import options
from specblock.cli.support import open_speculator, verb
from specblock.cli.tables import console


@verb
def calibrate(
    model: options.Model = options.DEFAULT_MODEL,
    drafter: options.Drafter = "auto",
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the table as one JSON object.")
    ] = False,
) -> None:
    """Measure the cost table anew and keep it for this machine, model, dtype and threads."""
    speculator = open_speculator(model, drafter, dtype, device, threads, calibrate="force")
    costs = speculator.costs.to_dict()
    if as_json:
        typer.echo(json.dumps(costs))
        return
    console().print(costs_table(costs))


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
