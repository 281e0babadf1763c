"""Reports of ``specblock evaluate`` as Markdown, and their learning curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specblock.bench.report.tables import Table, number, percent, table
from specblock.errors import SpecBlockError

__all__ = ["draw_curves", "evaluation_markdown", "is_evaluation", "read_evaluation"]

_ACCURACIES = {
    "slot 0": "accuracy_b1s0",
    "slot 1": "accuracy_b1s1",
    "slot 2": "accuracy_b1s2",
    "block 2, slot 0": "accuracy_b2s0",
}
_PLAYED = {
    "speed-up played back": "played_back",
    "with copies": "played_back_with_copies",
    "with memory": "played_back_with_memory",
}


def is_evaluation(report: Mapping[str, Any]) -> bool:
    """Whether a report is one of drafters on known answers."""
    return "drafters" in report


def read_evaluation(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report, its drafters called by the last part of their paths where that is unambiguous.

    Raises KeyError or TypeError if it is none.
    """
    short = [Path(name).name for name in report["drafters"]]
    names = short if len(set(short)) == len(short) else list(report["drafters"])
    drafters = dict(zip(names, report["drafters"].values(), strict=True))
    if not drafters or not all("tau" in found for found in drafters.values()):
        raise KeyError("tau")
    return {**report, "drafters": drafters}


def evaluation_markdown(report: Mapping[str, Any]) -> str:
    """The tables of a report with what it was measured on."""
    drafters = report["drafters"]
    parts = [_measured_on(report), table(_drafters(drafters))]
    if any(found.get("curve") for found in drafters.values()):
        parts += ["On the way there, by answer tokens seen in training:", table(_curves(drafters))]
    return "\n\n".join(parts) + "\n"


def _drafters(drafters: Mapping[str, Mapping[str, Any]]) -> Table:
    played = {t: key for t, key in _PLAYED.items() if any(key in d for d in drafters.values())}
    rows = [["drafter", *_ACCURACIES, "τ", *played]]
    for name, found in drafters.items():
        medians = ((found.get(key) or {}).get("median") for key in played.values())
        rows.append([name, *_figures(found), *(number(median, 2) for median in medians)])
    return rows


def _curves(drafters: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [["drafter", "answer tokens", "steps", *_ACCURACIES, "τ"]]
    for name, found in drafters.items():
        for state in found.get("curve", ()):
            seen = [f"{state['answer_tokens']:,}", str(state["step"])]
            rows.append([name, *seen, *_figures(state)])
    return rows


def _figures(found: Mapping[str, Any]) -> list[str]:
    return [*(percent(found.get(key), 1) for key in _ACCURACIES.values()), number(found["tau"], 2)]


def _measured_on(report: Mapping[str, Any]) -> str:
    setting, found = report["settings"], report["environment"]
    counts = {drafter["greedy_answers"] for drafter in report["drafters"].values()}
    without = "" if setting.get("rank_branching", True) else ", without the rank head"
    commit = f", commit {found['commit']}" if found.get("commit") else ""
    return (
        f"{max(counts)} greedy answers of at most {setting['max_new_tokens']} tokens played back "
        f"with {setting['nodes']} nodes and {setting['leaves']} leaves{without}; "
        f"{str(found.get('date', ''))[:10]}{commit}. Slots on the chain: those behind a wrong one "
        "are not counted."
    )


def draw_curves(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """τ and the accuracy of slot 0 against answer tokens seen, for all drafters with states.

    The format is the file's ending; the same reports give the same SVG.

    Raises :class:`SpecBlockError` where no drafter has a curve, or without matplotlib.
    """
    curves = {
        name: found["curve"]
        for report in reports
        for name, found in report["drafters"].items()
        if found.get("curve")
    }
    if not curves:
        raise SpecBlockError("No drafter there has a curve: run `specblock evaluate --states 5`.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SpecBlockError("Plots need matplotlib: pip install 'specblock[viz]'.") from error
    with mpl.rc_context({"svg.hashsalt": "specblock", "font.size": 9}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, states in curves.items():
            seen = [state["answer_tokens"] / 1e6 for state in states]
            left.plot(seen, [state["tau"] for state in states], marker="o", ms=3, label=name)
            right.plot(seen, [100 * state["accuracy_b1s0"] for state in states], marker="o", ms=3)
        left.set(xlabel="answer tokens seen, millions", ylabel="accepted length τ")
        right.set(xlabel="answer tokens seen, millions", ylabel="slot 0 right, %")
        left.legend(frameon=False)
        same = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=120, **same)
