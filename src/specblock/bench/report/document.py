"""Reports as Markdown, and the generated parts of a document.

A document names the report that a part of it comes from:

    <!-- specblock report results/own.json -->
    (generated; whatever stands here is replaced)
    <!-- end of specblock report -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specblock.bench.load.report import is_load, load_markdown, read_load
from specblock.bench.measure.rows import Row
from specblock.bench.playback.report import is_playback, playback_markdown, read_playback
from specblock.bench.report.evaluations import evaluation_markdown, is_evaluation, read_evaluation
from specblock.bench.report.streams import is_stream, read_stream, stream_markdown
from specblock.bench.report.summary import RIVAL, Summary
from specblock.bench.report.tables import Table, interval, number, percent, table
from specblock.budget.costs import CostTable
from specblock.errors import SpecBlockError
from specblock.storage import write_atomically

__all__ = [
    "figures_of",
    "markdown",
    "methods_rows",
    "pairs_rows",
    "read_report",
    "regenerate",
    "rounds_rows",
    "tasks_rows",
    "update",
]

_PART = re.compile(
    r"(<!-- specblock report (?P<path>\S+) -->\n).*?(<!-- end of specblock report -->)", re.DOTALL
)


def read_report(path: str | Path) -> dict[str, Any]:
    """A report of ``specblock bench``, ``bench-adapt`` or ``evaluate``.

    Figures are computed anew from rows, so reports of older versions get what theirs allow.

    Raises:
        SpecBlockError: there is no report in the file.
    """
    path = Path(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if is_stream(report):
            return read_stream(report)
        if is_evaluation(report):
            return read_evaluation(report)
        if is_load(report):
            return read_load(report)
        if is_playback(report):
            return read_playback(report)
        rows = [Row.from_dict(row) for row in report["rows"]]
        costs = {name: CostTable.from_dict(t) for name, t in report.get("costs", {}).items()}
        names, seed = list(report["methods"]), report["settings"]["seed"]
    except OSError as error:
        raise SpecBlockError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError):
        raise SpecBlockError(
            f"{path} is no report of `specblock bench`, `bench-adapt` or `evaluate` with --json."
        ) from None
    summary = Summary(rows, costs, seed)
    methods = summary.methods(names)
    if not all("draft_calls" in row for row in report["rows"]):  # not counted yet: not none
        unknown = ("draft_calls", "offered_nodes", "verified_nodes")
        for figures in methods.values():
            figures.update({f"{name}_per_round": None for name in unknown})
    return {**report, "methods": methods, "pairs": summary.pairs(names)}


def figures_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report's figures by method, policy or drafter."""
    kinds = ("policies", "drafters", "methods", "load")
    return next(report[kind] for kind in kinds if kind in report)


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a report with what they were measured on."""
    if is_stream(report):
        return stream_markdown(report)
    if is_evaluation(report):
        return evaluation_markdown(report)
    if is_load(report):
        return load_markdown(report)
    if is_playback(report):
        return playback_markdown(report)
    parts = [_measured_on(report), table(methods_rows(report)), table(rounds_rows(report))]
    pairs, tasks = pairs_rows(report), tasks_rows(report)
    if len(pairs) > 1:
        parts.append(table(pairs))
    if len(tasks) > 2:
        parts += ["Speed-up of decoding by task, τ behind it:", table(tasks)]
    return "\n\n".join([*parts, _divergences(report)]) + "\n"


def methods_rows(report: Mapping[str, Any]) -> Table:
    """Speeds, one method a row."""
    cells: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "tokens/s": lambda m: number(m["tokens_per_second"], 1),
        "speed-up of decoding": lambda m: interval(m["speedup"]),
        "end to end": lambda m: interval(m["end_to_end_speedup"]),
        f"decoding, over {RIVAL}": lambda m: interval((m[f"versus_{RIVAL}"] or {}).get("speedup")),
        "τ pooled": lambda m: number(m["accepted_length"], 2),
        "τ per request": lambda m: number(m["accepted_length_per_request"], 2),
        "identical": lambda m: f"{number(m['identical_answers'], 0)} of {m['answers']}",
    }
    return _by_method(report, cells)


def rounds_rows(report: Mapping[str, Any]) -> Table:
    """What a round takes and does, one method a row."""

    def part(name: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda m: number(m["milliseconds_per_round"][name], 1)

    def ratio(m: Mapping[str, Any]) -> str:
        return interval((m[f"versus_{RIVAL}"] or {}).get("draft_seconds"))

    cells: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "drafting, ms": part("draft"),
        "verifying, ms": part("verify"),
        "rest, ms": part("rest"),
        f"drafting time, of {RIVAL}'s": ratio,
        "drafter calls": lambda m: number(m["draft_calls_per_round"], 2),
        "nodes verified": lambda m: number(m["verified_nodes_per_round"], 1),
        "share of the limit": lambda m: percent((m["limit"] or {}).get("share")),
    }
    return _by_method(report, cells, "per round")


def pairs_rows(report: Mapping[str, Any]) -> Table:
    """Methods against each other, one pair a row."""
    rows = [["method over method", "decoding", "end to end", "drafting time"]]
    for pair in report.get("pairs", ()):
        names = f"{pair['method']} over {pair['over']}"
        cells = (pair["speedup"], pair["end_to_end_speedup"], pair["draft_seconds"])
        rows.append([names, *map(interval, cells)])
    return rows


def tasks_rows(report: Mapping[str, Any]) -> Table:
    """Speed-ups by task, one task a row."""
    methods = {n: m for n, m in report["methods"].items() if n != "plain"}
    tasks = sorted({task for method in methods.values() for task in method["tasks"]})
    rows = [["task", *methods]]
    for task in tasks:
        found = [method["tasks"].get(task) for method in methods.values()]
        rows.append([task or "–", *(_task_cell(figures) for figures in found)])
    return rows


def _task_cell(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "–"
    return f"{interval(figures['speedup'])}; {number(figures['accepted_length'], 2)}"


def _by_method(
    report: Mapping[str, Any],
    cells: Mapping[str, Callable[[Mapping[str, Any]], str]],
    corner: str = "method",
) -> Table:
    rows = [[name, *(cell(m) for cell in cells.values())] for name, m in report["methods"].items()]
    return [[corner, *cells], *rows]


def _measured_on(report: Mapping[str, Any]) -> str:
    found, generation = report["environment"], report["settings"]["generation"]
    prompts = len({row["id"] for row in report["rows"]})
    where = f"{found.get('gpu')}" if found.get("device", "cpu") != "cpu" else (
        f"{found.get('cpu')}, {found.get('threads')} threads"
    )  # fmt: skip
    commit = f", commit {found['commit']}" if found.get("commit") else ""
    return (
        f"{found.get('model')}, {found.get('dtype')}, {where}; {prompts} prompts, temperature "
        f"{generation['temperature']:g}, at most {generation['max_new_tokens']} new tokens; "
        f"{str(found.get('date', ''))[:10]}{commit}. Speed-ups over plain decoding: median "
        "prompt with the 95 % interval of a paired bootstrap."
    )


def _divergences(report: Mapping[str, Any]) -> str:
    found = report["divergences"]
    if not found:
        return "No output differs from plain decoding's."
    ties = [item for item in found if item["kind"] == "near-tie"]
    largest = max((item["margin"] or 0.0 for item in ties), default=0.0)
    text = f"{len(ties)} outputs differ at near-ties (largest margin {largest:.2g})"
    return f"{text}, {len(found) - len(ties)} for other reasons."


def regenerate(text: str, folder: Path) -> str:
    """``text`` with its generated parts made anew; reports are named relative to ``folder``.

    Raises:
        SpecBlockError: there is no generated part, or a report is missing.
    """
    if not _PART.search(text):
        raise SpecBlockError(
            "There is nothing to update: mark the place with '<!-- specblock report FILE -->' and "
            "'<!-- end of specblock report -->' on lines of their own."
        )

    def part(match: re.Match[str]) -> str:
        fresh = markdown(read_report(folder / match["path"]))
        return f"{match[1]}\n{fresh}\n{match[3]}"

    return _PART.sub(part, text)


def update(path: str | Path) -> bool:
    """Make the generated parts of a document anew; whether anything changed.

    Raises:
        SpecBlockError: as for :func:`regenerate`, or the document cannot be read or written.
    """
    path = Path(path)
    try:
        before = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecBlockError(f"{path} cannot be read: {error.strerror or error}.") from None
    after = regenerate(before, path.parent)
    if after != before:
        write_atomically(path, after)
    return after != before
