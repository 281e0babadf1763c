"""The pictures of a report, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from specblock.errors import SpecBlockError

__all__ = ["draw_plots"]

Plot = tuple[str, str, str]  # title, what it shows, SVG
_PARTS = {"draft": "drafting", "verify": "verifying", "rest": "rest"}
_BAR = 0.8  # of the space between two groups


def draw_plots(report: Mapping[str, Any]) -> list[Plot]:
    """All plots that the report has figures for.

    Raises:
        SpecBlockError: matplotlib is not installed.
    """
    made = (
        _speedups(report),
        _accepted(report),
        _rounds(report),
        _depths(report),
        _costs(report),
    )
    return [plot for plot in made if plot is not None]


@contextmanager
def _figure(width: float = 8.0, height: float = 3.6):
    """A figure's axes and a function for its SVG; the same figures give the same text."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise SpecBlockError(
            "Pictures need matplotlib: pip install 'specblock[viz]', or leave --html out."
        ) from None
    with mpl.rc_context({"svg.hashsalt": "specblock", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)

        def svg() -> str:
            out = io.StringIO()
            figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
            return out.getvalue()[out.getvalue().index("<svg") :]

        yield axes, svg


def _legend(axes: Any, columns: int) -> None:
    """Above the axes, where it hides nothing."""
    axes.figure.legend(loc="outside upper center", frameon=False, ncols=columns)


def _drafting(report: Mapping[str, Any]) -> dict[str, Any]:
    """The methods that a plot compares: all but the baseline."""
    return {name: m for name, m in report["methods"].items() if name != "plain"}


def _tasks(methods: Mapping[str, Any]) -> list[str]:
    return sorted({task for method in methods.values() for task in method["tasks"]})


def _groups(axes: Any, names: Sequence[str], count: int) -> Callable[[int], list[float]]:
    """Where the bars of ``count`` series stand in the groups called ``names``."""
    axes.set_xticks(range(len(names)), [name or "all" for name in names], rotation=20, ha="right")
    width = _BAR / count
    return lambda series: [place - _BAR / 2 + width * (series + 0.5) for place in range(len(names))]


def _speedups(report: Mapping[str, Any]) -> Plot | None:
    methods = _drafting(report)
    tasks = _tasks(methods)
    if not tasks:
        return None
    with _figure() as (axes, svg):
        places = _groups(axes, tasks, len(methods))
        for series, (name, method) in enumerate(methods.items()):
            found = [method["tasks"].get(task, {}).get("speedup") for task in tasks]
            found = [f if f and f["median"] is not None else None for f in found]
            heights = [f["median"] if f else 0.0 for f in found]
            low = [f["median"] - f["low"] if f and f["low"] is not None else 0.0 for f in found]
            high = [f["high"] - f["median"] if f and f["high"] is not None else 0.0 for f in found]
            width = 0.9 * _BAR / len(methods)
            axes.bar(places(series), heights, width, yerr=[low, high], label=name, capsize=2)
        axes.axhline(1.0, color="0.4", linewidth=0.8)
        axes.set_ylabel("times plain decoding")
        _legend(axes, 4)
        return (
            "Speed-up of decoding by task",
            "How many times as fast as plain decoding, median prompt; the whiskers are 95 % "
            "intervals. The line at 1 is plain decoding.",
            svg(),
        )


def _accepted(report: Mapping[str, Any]) -> Plot | None:
    methods = _drafting(report)
    tasks = _tasks(methods)
    if not tasks:
        return None
    with _figure() as (axes, svg):
        places = _groups(axes, tasks, len(methods))
        for series, (name, method) in enumerate(methods.items()):
            heights = [method["tasks"].get(t, {}).get("accepted_length") or 0.0 for t in tasks]
            axes.bar(places(series), heights, 0.9 * _BAR / len(methods), label=name)
        axes.set_ylabel("τ, tokens a verification")
        _legend(axes, 4)
        return (
            "Accepted length τ by task",
            "Tokens that one verification yields: accepted draft tokens and the bonus token. "
            "Plain decoding has 1.",
            svg(),
        )


def _rounds(report: Mapping[str, Any]) -> Plot:
    methods = report["methods"]
    with _figure(height=0.8 + 0.35 * len(methods)) as (axes, svg):
        left = [0.0] * len(methods)
        for part, label in _PARTS.items():
            widths = [m["milliseconds_per_round"][part] or 0.0 for m in methods.values()]
            axes.barh(list(methods), widths, left=left, label=label)
            left = [sum(pair) for pair in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds a round")
        _legend(axes, 3)
        return (
            "Where the time of a round goes",
            "A round drafts a tree, verifies it with the target and takes over what was accepted. "
            "A longer bar is worth it where τ grows more.",
            svg(),
        )


def _depths(report: Mapping[str, Any]) -> Plot | None:
    methods = {n: m["acceptance_by_depth"] for n, m in report["methods"].items()}
    methods = {name: rates for name, rates in methods.items() if rates}
    if not methods:
        return None
    with _figure() as (axes, svg):
        for name, rates in methods.items():
            axes.plot(range(1, len(rates) + 1), rates, marker="o", markersize=3, label=name)
        axes.set(xlabel="depth in the tree", ylabel="share of drafting rounds", ylim=(0, 1))
        _legend(axes, 3)
        return (
            "Acceptance by depth",
            "How often a drafting round accepted at least so many draft tokens.",
            svg(),
        )


def _costs(report: Mapping[str, Any]) -> Plot | None:
    costs = report.get("costs") or {}
    table = costs.get("") or next(iter(costs.values()), None)
    if table is None:
        return None
    rows = sorted((int(n), seconds) for n, seconds in table["target"].items())
    with _figure() as (axes, svg):
        counts = [n for n, _ in rows]
        times = [1000 * seconds for _, seconds in rows]
        axes.plot(counts, times, color="0.3", marker="o", markersize=3, label="target forward")
        share = axes.twinx()
        share.spines["top"].set_visible(False)
        for name, method in report["methods"].items():
            chosen = {int(n): count for n, count in method["rounds_by_nodes"].items()}
            total = sum(chosen.values())
            if total:
                sizes = sorted(chosen)
                reached = [sum(chosen[n] for n in sizes if n <= size) / total for size in sizes]
                places = [1, *(1 + n for n in sizes), counts[-1]]
                heights = [0.0, *reached, 1.0]
                share.step(places, heights, where="post", linestyle="--", label=name)
        axes.set(xlabel="rows: nodes of the tree and its root", ylabel="milliseconds")
        axes.set_ylim(0, None)
        share.set(ylabel="share of drafting rounds up to this size", ylim=(0, 1.02))
        _legend(axes, 4)
        return (
            "What verification costs, and which trees were chosen",
            "Solid: one forward of the target by rows, measured before the run. Dashed: the share "
            "of drafting rounds that verified a tree of at most this size; a fixed budget jumps at "
            "its one size.",
            svg(),
        )
