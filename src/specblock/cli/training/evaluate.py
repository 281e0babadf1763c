"""``specblock evaluate``: how good drafters are on answers of the target, without decoding."""

from __future__ import annotations

import json
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
    from specblock.budget.costs import CostTable

DrafterFolders = Annotated[
    list[Path] | None,
    typer.Option("--drafter", help="Folder; several are compared.", show_default="what ships"),
]
Costs = Annotated[
    Path | None,
    typer.Option(help="Table of `specblock calibrate --json`: also play the measured budget back."),
]
COLUMNS = {
    "slot 0": ("accuracy_b1s0", 3),
    "slot 1": ("accuracy_b1s1", 3),
    "block 2": ("accuracy_b2s0", 3),
    "rank": ("rank_accuracy", 3),
    "τ": ("tau", 2),
}
PLAYED = {
    "median": ("median", 2),
    "25 %": ("lower_quartile", 2),
    "lowest": ("lowest", 2),
    "< 0.95": ("below_0.95", 0),
}


@verb
def evaluate(
    *,
    answers: Annotated[Path, typer.Option(help="Answers of `specblock regenerate`.")],
    drafter: DrafterFolders = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Answers to read.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    nodes: Annotated[int, typer.Option(min=1, help="Of the fixed budget.")] = 60,
    leaves: Annotated[int, typer.Option(min=0, help="Of the fixed budget.")] = 28,
    rank_branching: Annotated[
        bool, typer.Option(help="Let SpecBlock's rank head decide the branching.")
    ] = True,
    costs: Costs = None,
    states: Annotated[
        int, typer.Option(min=0, help="Also so many states of its training: a learning curve.")
    ] = 0,
    place: options.Target,
    report: options.JsonOut = None,
) -> None:
    """Accuracy by slot, and what decoding would accept, on the target's own answers.

    Decoding is played back on the answers that were given at temperature 0: draw them with
    `specblock regenerate --temperatures 0:1 --dtype float32`.
    """
    from specblock.bench.environment import describe_environment
    from specblock.engine.named_drafter import shipped_drafter
    from specblock.training.data.answers import check_answers, read_answers
    from specblock.training.evaluate.finished import Setting, evaluate_drafter

    setting = Setting(max_new_tokens, nodes, leaves, rank_branching, read_costs(costs), states)
    folders = drafter or [shipped_drafter(place.model)]
    if folders == [None]:
        raise ConfigError(f"No drafter ships for {place.model}: name one with --drafter.")
    rows = read_answers(answers, limit=limit)
    network, tokenizer = place.load()
    check_answers(rows, network, answers)
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        say_step(f"evaluating {folder}")
        found[str(folder)] = evaluate_drafter(folder, network, tokenizer, rows, setting)
        if report is not None:  # after every drafter: nothing is lost if a later one fails
            text = {"settings": setting.to_dict(), "environment": describe_environment()}
            write_atomically(report, json.dumps({"drafters": found, **text}, indent=1) + "\n")
    console().print(evaluation_table(found))


def read_costs(path: Path | None) -> CostTable | None:
    """The cost table in a file. Raises :class:`ConfigError` where the file holds none."""
    if path is None:
        return None
    from specblock.budget.costs import CostTable

    try:
        return CostTable.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no table of `specblock calibrate --json` ({error}); make one."
        ) from None


def evaluation_table(found: dict[str, dict[str, Any]]) -> Table:
    """A row for every drafter, one more for its budget with copies; the speed-up over plain
    decoding (median, lower quartile, lowest, answers below 0.95) where it was played back."""
    played = any("played_back" in row for row in found.values())
    title = "on the right: speed-up by answer with the measured budget" if played else None
    table = Table(box=box.SIMPLE, collapse_padding=True, title=title)
    table.add_column("", no_wrap=True)
    for title in (*COLUMNS, *(PLAYED if played else ())):
        table.add_column(title, justify="right")
    for name, row in found.items():
        cells = [figure(row.get(key), digits) for key, digits in COLUMNS.values()]
        budget = row.get("played_back", {})
        cells += [figure(budget.get(key), digits) for key, digits in PLAYED.values() if played]
        table.add_row(Path(name).name, *cells)
        for more in ("copies", "memory"):
            copied = row.get(f"played_back_with_{more}")
            if copied is not None:
                blank = [""] * (len(COLUMNS) - 1) + [figure(copied["tau"], 2)]
                cells = [figure(copied.get(key), digits) for key, digits in PLAYED.values()]
                table.add_row(f"  with {more}", *blank, *cells)
        for state in row.get("curve", ()):
            cells = [figure(state.get(key), digits) for key, digits in COLUMNS.values()]
            table.add_row(f"  {state['answer_tokens']:,} tokens", *cells)
    return table
