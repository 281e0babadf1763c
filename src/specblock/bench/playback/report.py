"""A report of played rounds: kept on the disk after every method, gone on with, read as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specblock.bench.measure.methods import MethodSpec
from specblock.bench.playback.answers import Asked
from specblock.bench.playback.figures import PAIRS, launched, method_figures, pair_figures
from specblock.bench.playback.published import EAGLE3, SPECBLOCK
from specblock.bench.playback.run import Player, Row
from specblock.bench.playback.sheet import CostSheet
from specblock.bench.report.tables import Table, interval, number, percent, table
from specblock.bench.runner import write_report

__all__ = ["is_playback", "play_all", "playback_markdown", "read_playback"]

# seconds that every forward may take beyond a sheet's: captured launches become uncaptured ones
MORE_LAUNCH = (0.0, 0.0004, 0.0009, 0.0019)
_CLAIM = (1.08, 1.13)  # the paper's speed-up over EAGLE-3
_PUBLISHED = SPECBLOCK.tau / EAGLE3.tau


def play_all(
    player: Player,
    specs: Mapping[str, MethodSpec],
    sheets: Sequence[CostSheet],
    about: Mapping[str, Any],
    done: Sequence[Row] = (),
    out: Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """The report of all methods under all sheets; ``done`` rows of an earlier run are taken over.

    Args:
        about: settings and environment. out: JSON file, replaced after every method.
    """
    rows = list(done)
    had = {(row.sheet, row.method) for row in rows}
    for name, spec in specs.items():
        missing = [sheet for sheet in sheets if (sheet.name, name) not in had]
        for turn in [[sheet] for sheet in missing] if spec.measured else [missing] * bool(missing):
            on_step(f"{name}, {', '.join(sheet.name for sheet in turn)}")
            rows += player.play(name, spec, turn)
            if out is not None:
                write_report(out, _report(rows, sheets, player.answers, about))
    return _report(rows, sheets, player.answers, about)


def _report(
    rows: Sequence[Row],
    sheets: Sequence[CostSheet],
    answers: Sequence[Asked],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "playback": [sheet.to_dict() for sheet in sheets],
        **about,
        "answers": [one.to_dict() for one in answers],
        "rows": [row.to_dict() for row in rows],
    }


def is_playback(report: Mapping[str, Any]) -> bool:
    """Whether a report is one of played rounds."""
    return "playback" in report


def read_playback(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with the figures of its rows, ``methods`` and ``pairs`` by sheet.

    Raises KeyError, TypeError or ValueError if it is none.
    """
    rows, seed = [Row(**row) for row in report["rows"]], report["settings"]["seed"]
    methods: dict[str, dict[str, Any]] = {}
    pairs: dict[str, dict[str, Any]] = {}
    for state in report["playback"]:
        sheet = CostSheet.from_dict(state)
        own: dict[str, list[Row]] = {}
        for row in rows:
            if row.sheet == sheet.name:
                own.setdefault(row.method, []).append(row)
        methods[sheet.name] = {
            name: {
                **method_figures(mine, sheet.plain_seconds, seed),
                "launched": [launched(mine, sheet.plain_seconds, more) for more in MORE_LAUNCH],
            }
            for name, mine in own.items()
        }
        pairs[sheet.name] = {
            f"{one} over {other}": pair_figures(own[one], own[other], seed)
            for one, other in PAIRS
            if one in own and other in own
        }
    return {**report, "methods": methods, "pairs": pairs}


def playback_markdown(report: Mapping[str, Any]) -> str:
    """The tables of a report with what was played on what."""
    parts = [_played_on(report), table(_methods(report)), table(_pairs(report))]
    parts += ["How far it depends on τ, at 60 nodes:", table(_lengths(report))]
    parts += ["And on what a launch takes, at 60 nodes:", table(_launches(report))]
    return "\n\n".join(parts) + "\n"


def _methods(report: Mapping[str, Any]) -> Table:
    titles = ["sheet, method", "speed-up", "all together", "τ", "drafting share"]
    rows = [[*titles, "plain steps a round", "calls", "nodes"]]
    for sheet, methods in report["methods"].items():
        for name, found in methods.items():
            rows.append(
                [
                    f"{sheet}, {name}",
                    *(interval(found[key]) for key in ("speedup", "speedup_pooled")),
                    interval(found["accepted_length"]),
                    interval(found["drafting_share"]),
                    interval(found["round_steps"]),
                    number(found["calls_per_round"], 2),
                    number(found["nodes_per_round"], 1),
                ]
            )
    return rows


def _pairs(report: Mapping[str, Any]) -> Table:
    titles = ["sheet, method over method", "speed-up", "all together", "τ over τ"]
    rows = [[*titles, "drafting a round", "drafting in all"]]
    keys = ("speedup", "speedup_pooled", "accepted_length", "drafting_per_round", "drafting")
    for sheet, pairs in report["pairs"].items():
        for name, found in pairs.items():
            rows.append([f"{sheet}, {name}", *(interval(found[key]) for key in keys)])
    return rows


def _lengths(report: Mapping[str, Any]) -> Table:
    """What accepted lengths would have to be for the paper's speed-ups, at 60 nodes."""
    rows = [
        [
            "sheet",
            "τ over τ here",
            "for equal speed",
            *(f"for {claim:.2f}" for claim in _CLAIM),
            f"speed-up at the paper's ({_PUBLISHED:.2f})",
            f"EAGLE-3's τ for {EAGLE3.speedup}",
            f"SpecBlock's τ for {SPECBLOCK.speedup}",
        ]
    ]
    for sheet, methods, found in _fixed(report):
        even = found["break_even"]["median"]
        rival, own = methods["eagle3"]["round_steps"], methods["specblock-paper"]["round_steps"]
        rows.append(
            [
                sheet,
                interval(found["accepted_length"]),
                interval(found["break_even"]),
                *(number(claim * even, 2) for claim in _CLAIM),
                number(_PUBLISHED / even, 2),
                number(EAGLE3.speedup * rival["median"], 2),
                number(SPECBLOCK.speedup * own["median"], 2),
            ]
        )
    return rows


def _launches(report: Mapping[str, Any]) -> Table:
    more = [f"+{1e3 * seconds:g} ms" for seconds in MORE_LAUNCH]
    rows = [["sheet", *(f"{title} a forward" for title in more)]]
    for sheet, methods, _ in _fixed(report):
        pairs = zip(
            methods["specblock-paper"]["launched"], methods["eagle3"]["launched"], strict=True
        )
        taus = [methods[n]["accepted_length"]["median"] for n in ("specblock-paper", "eagle3")]
        cells = [
            f"{taus[0] / taus[1] * theirs[0] / mine[0]:.2f} at {_of(mine, theirs):.0%}; "
            f"{percent(mine[1])} and {percent(theirs[1])}"
            for mine, theirs in pairs
        ]
        rows.append([sheet, *cells])
    return rows


def _of(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Drafting a round, of the rival's."""
    return mine[0] * mine[1] / (theirs[0] * theirs[1])


def _fixed(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Sheets where both were played with 60 nodes: name, methods, the pair."""
    pair = " over ".join(PAIRS[0])
    found = report["pairs"].items()
    return [(name, report["methods"][name], own[pair]) for name, own in found if pair in own]


def _played_on(report: Mapping[str, Any]) -> str:
    found, settings = report["environment"], report["settings"]
    sheets = "; ".join(
        f"`{sheet['name']}`: {sheet['about']} ({sheet['source']})" for sheet in report["playback"]
    )
    prompts = len({row["id"] for row in report["rows"]})
    commit = f", commit {found['commit']}" if found.get("commit") else ""
    return (
        f"A playback: rounds of {found.get('model')} and its drafters on {prompts} prompts "
        f"({len(report['answers'])} answers of at most {settings['max_new_tokens']} tokens, "
        f"greedy, {found.get('dtype')}), in seconds of other machines. {sheets}. "
        f"{str(found.get('date', ''))[:10]}{commit}. No clock was read; intervals are 95 % "
        "by bootstrap over prompts."
    )
