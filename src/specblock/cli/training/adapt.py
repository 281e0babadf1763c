"""``specblock adapt``: look at what a drafter has learned in use, and take it along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from specblock.cli import options
from specblock.cli.support import verb
from specblock.cli.tables import console, figure
from specblock.errors import ConfigError

app = typer.Typer(help="Look at what a drafter learned in use, or export it.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The folder that was named with --adapt.")]


@app.command()
@verb
def status(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Show arms, pulls, gains, costs and roll-backs."""
    from specblock.adaptation.state import read_status

    found = read_status(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for title in ("arm", "pulls", "swaps", "gain", "seconds", "next cost", "roll-backs", "errors"):
        table.add_column(title, justify="left" if title == "arm" else "right")
    for arm, row in found["arms"].items():
        gain = f"{100 * row['gain']:+.1f} %"
        counts = str(row["rollbacks"]), str(row["errors"])
        spent = figure(row["seconds"]), figure(row["cost"])
        table.add_row(arm, str(row["pulls"]), str(row["swaps"]), gain, *spent, *counts)
    out = console()
    out.print(table)
    delay = found.get("delay_seconds", found["update_seconds"])
    out.print(
        f"{figure(found['decoded_seconds'])} s decoded, {figure(found['update_seconds'])} s spent "
        f"on updates, which held up requests for {figure(delay)} s; "
        f"balance {found['saved_seconds'] - delay:+.1f} s; accepted length "
        f"{figure(found['accepted_length'], 2)}; {found['skips']} times skipped.",
        highlight=False,
    )
    buffer = found["buffer"]
    out.print(
        f"Feedback: {buffer['records']} requests ({buffer['held_out']} held out), "
        f"{buffer['bytes'] / 2**20:.1f} MiB, {buffer['seen']} seen. "
        f"Memory: {found.get('memory_tokens', 0)} tokens of answers.",
        highlight=False,
    )


@app.command()
@verb
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="Folder of the drafter to write.")],
    place: options.Speculating,
) -> None:
    """Write the adapted drafter as an ordinary one, for --drafter.

    ``--drafter`` is the one that the adaptation began with.
    """
    from specblock.adaptation.adapter import Adaptation
    from specblock.adaptation.state import export as write
    from specblock.adaptation.state import read_status

    read_status(folder)  # says it in a sentence if there is nothing to export
    speculator = place.open(calibrate="never", adapt=folder)
    if not isinstance(speculator.adaptation, Adaptation):
        raise ConfigError(
            "Answers that were remembered are no drafter: there is nothing to export."
        )
    write(speculator.adaptation, out)
    typer.echo(f"Wrote {out}: use it with --drafter {out}")
