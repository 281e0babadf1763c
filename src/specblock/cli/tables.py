"""Figures as rich tables, for terminals and pipes alike."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 100


def console(*, stderr: bool = False) -> Console:
    """A console that does not squeeze its tables into 80 columns when it is a pipe."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)


def figure(value: float | None, digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def speedup(value: dict[str, float | None]) -> str:
    """Median and interval of a speed-up, as far as they are there."""
    if value["median"] is None:
        return "–"
    if value["low"] is None:
        return f"{value['median']:.2f}"
    return f"{value['median']:.2f} ({value['low']:.2f}–{value['high']:.2f})"


CELLS = {
    "tokens/s": lambda row: figure(row["tokens_per_second"]),
    "tokens/s without prefill": lambda row: figure(row["decode_tokens_per_second"]),
    "accepted length τ": lambda row: figure(row["accepted_length"], 2),
    "speed-up (95 % interval)": lambda row: speedup(row["end_to_end_speedup"]),
    "speed-up without prefill": lambda row: speedup(row["speedup"]),
    "identical answers": lambda row: f"{figure(row['identical_answers'], 0)} of {row['answers']}",
}
_SIDE_BY_SIDE = 3  # more methods than these stand below each other


def methods_table(methods: dict[str, dict[str, Any]]) -> Table:
    """A few methods as columns, more of them as rows: the ``methods`` part of a bench report."""
    table = Table(box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    if len(methods) > _SIDE_BY_SIDE:
        for title in CELLS:
            table.add_column(title, justify="right")
        for name, row in methods.items():
            table.add_row(name, *(cell(row) for cell in CELLS.values()))
        return table
    for name in methods:
        table.add_column(name, justify="right", no_wrap=True)
    for title, cell in CELLS.items():
        table.add_row(title, *(cell(row) for row in methods.values()))
    return table
