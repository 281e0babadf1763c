"""Reports of ``specblock bench adapt`` as Markdown, their figures computed anew from their rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specblock.adaptation.replay.report import NEVER, Row, report_of
from specblock.adaptation.replay.stream import Plan
from specblock.bench.report.tables import Table, number, table

__all__ = ["is_stream", "read_stream", "stream_markdown"]


def is_stream(report: Mapping[str, Any]) -> bool:
    """Whether a report is one of a replayed stream."""
    return "policies" in report


def read_stream(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with its figures from its rows; raises KeyError or TypeError if it is none."""
    rows = [Row(**row) for row in report["rows"]]
    names, settings = list(report["policies"]), report["settings"]
    plan = Plan(settings["policies"], settings.get("loads", ()), settings.get("seed", 0))
    return report_of(rows, names, settings, report["environment"], plan.arrivals(rows))


def stream_markdown(report: Mapping[str, Any]) -> str:
    """The tables of a report with what they were measured on."""
    parts = [_measured_on(report), table(_policies(report))]
    if report.get("loads"):
        parts += ["Seconds from the arrival of a request to its answer:", table(_answered(report))]
    if len(report["tasks"]) > 1 and NEVER in report["policies"]:
        parts += ["Tokens/s by domain, and what that is over `never`:", table(_tasks(report))]
    if "poison" in report:
        first, last = report["settings"]["poison"]
        parts += [f"τ around the requests {first} to {last - 1}, in which the feedback lied:"]
        parts.append(table(_phases(report)))
    different = sum(found["different_answers"] for found in report["policies"].values())
    answers = "No answer differs" if not different else f"{different} answers differ"
    return "\n\n".join([*parts, f"{answers} from the first policy's."]) + "\n"


def _policies(report: Mapping[str, Any]) -> Table:
    titles = ("tokens/s", "τ", "updates", "used", "rolled back", "seconds of updates")
    rows = [["policy", *titles, "seconds won"]]
    for name, found in report["policies"].items():
        won = report["won_seconds"].get(name)
        rows.append(
            [
                name,
                number(found["tokens_per_second"], 1),
                number(found["accepted_length"], 2),
                *(str(found[key]) for key in ("updates", "swaps", "rollbacks")),
                number(found["update_seconds"], 1),
                "0" if won is None else f"{won[-1]:+.1f}",
            ]
        )
    return rows


def _answered(report: Mapping[str, Any]) -> Table:
    rows = [["load", "policy", "mean", "95th percentile"]]
    for load, policies in report["loads"].items():
        for name, found in policies.items():
            rows.append([str(load), name, number(found["mean"], 2), number(found["p95"], 2)])
    return rows


def _tasks(report: Mapping[str, Any]) -> Table:
    rows = [["domain", *report["policies"]]]
    for task, policies in report["tasks"].items():
        base = policies[NEVER]["tokens_per_second"]
        cells = []
        for name, found in policies.items():
            speed = found["tokens_per_second"]
            gained = "" if name == NEVER or not (base and speed) else f" ({speed / base - 1:+.1%})"
            cells.append(number(speed, 1) + gained)
        rows.append([task or "–", *cells])
    return rows


def _phases(report: Mapping[str, Any]) -> Table:
    phases = ("before", "during", "after")
    body = [
        [name, *(number(found[phase], 3) for phase in phases)]
        for name, found in report["poison"].items()
    ]
    return [["policy", *phases], *body]


def _measured_on(report: Mapping[str, Any]) -> str:
    found, generation = report["environment"], report["settings"]["generation"]
    requests = len(report["settings"]["requests"])
    commit = f", commit {found['commit']}" if found.get("commit") else ""
    answers, seconds = "answers known", "A playback: seconds of decoding are the cost table's"
    if generation is not None:
        limits = f"at most {generation['max_new_tokens']} new tokens"
        answers = f"temperature {generation['temperature']:g}, {limits}"
        seconds = "From prompt to answer"
    return (
        f"{found.get('model')}, {found.get('dtype')}, {found.get('cpu')}, {found.get('threads')} "
        f"threads; {requests} requests in order, {answers}; {str(found.get('date', ''))[:10]}"
        f"{commit}. {seconds}, updates inside the clock."
    )
