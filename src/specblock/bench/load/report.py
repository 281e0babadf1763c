"""Reports of ``specblock bench --concurrency`` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specblock.bench.load.served import TURNS, Turn, figures
from specblock.bench.measure.methods import PLAIN
from specblock.bench.report.tables import number, table

__all__ = ["is_load", "load_markdown", "read_load"]


def is_load(report: Mapping[str, Any]) -> bool:
    """Whether a report is one of many clients."""
    return "load" in report


def read_load(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with its figures from its turns; raises KeyError or TypeError if it is none."""
    turns = [Turn.from_dict(turn) for turn in report["turns"]]
    return {**report, "load": figures(turns, PLAIN)}


def load_markdown(report: Mapping[str, Any]) -> str:
    """The table of a report, and what it was measured on."""
    found, settings = report["environment"], report["settings"]
    titles = ("tokens/s", "over plain", "first token, s", "95 %", "a token, ms", "95 %")
    rows = [["clients, method", *titles, "tokens a step", "nodes a step"]]
    for clients, methods in report["load"].items():
        for name, own in methods.items():
            rows.append(
                [
                    f"{clients}, {name}",
                    number(own["tokens_per_second"], 1),
                    number(own["ratio"], 2),
                    number(own["first"], 2),
                    number(own["first_95"], 2),
                    number(own["each"] * 1e3, 0),
                    number(own["each_95"] * 1e3, 0),
                    number(own["tokens_per_step"], 2),
                    number(own["nodes_per_step"], 2),
                ]
            )
    commit = f", commit {found['commit']}" if found.get("commit") else ""
    return (
        f"{found.get('model')}, {found.get('dtype')}, {found.get('cpu')}, "
        f"{found.get('threads')} threads; {settings['prompts']} prompts ({settings['suite']}), "
        f"{settings['generation']['max_new_tokens']} new tokens; medians of {TURNS} turns; "
        f"{str(found.get('date', ''))[:10]}{commit}.\n\n{table(rows)}\n"
    )
