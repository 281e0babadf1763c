"""Figures and tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["Table", "interval", "number", "percent", "table"]

Table = list[list[str]]  # the first row holds the titles


def number(value: float | None, digits: int) -> str:
    """A figure, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}%}"


def interval(value: Mapping[str, float | None] | None) -> str:
    """A figure with its interval, as far as they are there."""
    if value is None or value["median"] is None:
        return "–"
    if value["low"] is None:
        return f"{value['median']:.2f}"
    return f"{value['median']:.2f} ({value['low']:.2f} – {value['high']:.2f})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right.

    Names of tasks come from anybody's files: what would end a cell, a row or begin a tag does not.
    """
    titles, *body = [[_cell(text) for text in row] for row in rows]
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
