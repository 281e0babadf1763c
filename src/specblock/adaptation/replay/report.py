"""What a replayed stream says about policies of adaptation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from specblock.adaptation.replay.clock import served
from specblock.errors import ConfigError

NEVER, BANDIT = "never", "bandit"
_SMOOTH = 15  # requests that a point of a drawn curve is the mean of


@dataclass(frozen=True)
class Row:
    """One request under one policy.

    ``seconds``: from prompt to answer, and until everything was done that was done at once.
    ``identical``: the same tokens as under the first policy. ``events``: what the adaptation logged
    meanwhile. In the gap before it ``learned`` seconds of steps were taken, and it waited ``delay``
    seconds until one made room.
    """

    index: int
    id: str
    task: str
    policy: str
    tokens: int
    seconds: float
    rounds: int
    round_tokens: int
    identical: bool
    events: list[dict[str, Any]] = field(default_factory=list)
    delay: float = 0.0
    learned: float = 0.0

    @property
    def taken(self) -> float:
        """Seconds that it kept the machine from others."""
        return self.delay + self.seconds


def report_of(
    rows: Sequence[Row],
    policies: Sequence[str],
    settings: dict[str, Any],
    environment: dict[str, Any] | None = None,
    arrivals: Mapping[float, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """The report as JSON values.

    ``policies`` by name; ``tasks`` the same by domain; ``won_seconds`` cumulative against
    ``never``, by policy; ``regret`` cumulative seconds of the bandit behind the fixed policy that
    was best in the end; ``decisions`` of the bandit with their contexts; ``rows``; with poisoned
    feedback ``poison``: the accepted length before, while and after it lied, by policy; with
    ``arrivals`` of requests by load ``loads``: by load and policy the mean and the 95th percentile
    of the seconds from arrival to answer, and the seconds of the day.
    """
    by_policy = {name: [row for row in rows if row.policy == name] for name in policies}
    tasks = list(dict.fromkeys(row.task for row in rows))
    return {
        "policies": {name: _summary(own) for name, own in by_policy.items()},
        "tasks": {
            task: {
                name: _summary([row for row in own if row.task == task])
                for name, own in by_policy.items()
            }
            for task in tasks
        },
        "won_seconds": _won(by_policy),
        "regret": _regret(by_policy),
        "loads": _loads(by_policy, arrivals or {}),
        **({"poison": _phases(by_policy, *settings["poison"])} if "poison" in settings else {}),
        "decisions": [
            {
                "index": row.index,
                "policy": row.policy,
                **{key: event[key] for key in ("context", "arm", "values")},
            }
            for row in rows
            for event in row.events
            if event["event"] == "decide"
        ],
        "settings": settings,
        "environment": environment or {},
        "rows": [asdict(row) for row in rows],
    }


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    events = [event for row in rows for event in row.events]
    attempts = [event for event in events if event["event"] == "attempt"]
    seconds, rounds = sum(row.taken for row in rows), sum(row.rounds for row in rows)
    return {
        "tokens_per_second": sum(row.tokens for row in rows) / seconds if seconds else None,
        "accepted_length": sum(row.round_tokens for row in rows) / rounds if rounds else None,
        "updates": len(attempts),
        "swaps": sum(event["outcome"] == "better" for event in attempts),
        "reverts": sum(event["outcome"] == "reverted" for event in attempts),
        "update_seconds": sum(event["seconds"] for event in attempts),
        "rollbacks": sum(event["event"] == "rollback" for event in events),
        "seconds": seconds,
        "delay_seconds": sum(row.delay for row in rows),
        "learned_seconds": sum(row.learned for row in rows),
        "requests": len(rows),
        "different_answers": sum(not row.identical for row in rows),
    }


def _phases(by_policy: dict[str, list[Row]], first: int, last: int) -> dict[str, Any]:
    phases = {"before": (0, first), "during": (first, last), "after": (last, math.inf)}
    return {
        name: {
            phase: _summary([row for row in rows if start <= row.index < end])["accepted_length"]
            for phase, (start, end) in phases.items()
        }
        for name, rows in by_policy.items()
    }


def _seconds(rows: Sequence[Row]) -> list[float]:
    return list(accumulate(row.taken for row in rows))


def _loads(
    by_policy: dict[str, list[Row]], arrivals: Mapping[float, Sequence[float]]
) -> dict[str, Any]:
    """Of every load those that learn in its gaps, and those to whom gaps are nothing."""
    found: dict[str, Any] = {}
    for load, at in arrivals.items():
        of_others = [f" at {other:g}" for other in arrivals if other != load]
        found[f"{load:g}"] = {
            name: asdict(
                served(at[: len(rows)], [r.delay for r in rows], [r.seconds for r in rows])
            )
            for name, rows in by_policy.items()
            if rows and not name.endswith(tuple(of_others))
        }
    return found


def _won(by_policy: dict[str, list[Row]]) -> dict[str, list[float]]:
    if NEVER not in by_policy:
        return {}
    base = _seconds(by_policy[NEVER])
    return {
        name: [a - b for a, b in zip(base, _seconds(rows), strict=True)]
        for name, rows in by_policy.items()
        if name != NEVER
    }


def _regret(by_policy: dict[str, list[Row]]) -> dict[str, Any]:
    fixed = {name: _seconds(rows) for name, rows in by_policy.items() if name != BANDIT and rows}
    if not fixed or not by_policy.get(BANDIT):
        return {}
    best = min(fixed, key=lambda name: fixed[name][-1])
    own = _seconds(by_policy[BANDIT])
    return {
        "best_fixed": best,
        "seconds": [a - b for a, b in zip(own, fixed[best], strict=True)],
    }


def regret_told(best_fixed: str, seconds: Sequence[float]) -> str:
    """A report's ``regret`` as a sentence: who was quicker, and whether all along."""
    against, apart = f"the best fixed policy ('{best_fixed}')", f"{abs(seconds[-1]):.1f} s"
    if apart == "0.0 s":
        return f"The bandit took as long as {against}."
    if seconds[-1] < 0:
        return f"The bandit was {apart} ahead of {against} in the end."
    caught_up = any(behind <= 0 for behind in seconds)
    on_the_way = "having been level or ahead on the way" if caught_up else "and never caught up"
    return f"The bandit was {apart} behind {against} in the end, {on_the_way}."


def draw(report: dict[str, Any], path: Path) -> None:
    """Speed, accepted length and seconds won along the stream, updates marked, to an image file.

    The format is the file's ending; the same report gives the same SVG.

    Raises :class:`ConfigError` without matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("Plots need matplotlib: pip install 'specblock[viz]'.") from error
    figure = Figure(figsize=(9, 8), layout="constrained")
    speed, tau, won = figure.subplots(3, 1, sharex=True)
    for name in report["policies"]:
        rows = [row for row in report["rows"] if row["policy"] == name]
        at = [row["index"] for row in rows]
        (line,) = speed.plot(at, _rolling(rows, "tokens", "seconds"), label=name)
        tau.plot(at, _rolling(rows, "round_tokens", "rounds"), color=line.get_color())
        if name in report["won_seconds"]:
            won.plot(at, report["won_seconds"][name], color=line.get_color())
        for row in rows:
            for event in row["events"]:
                if event["event"] == "attempt":
                    style = "-" if event["outcome"] == "better" else ":"
                    tau.axvline(row["index"], color=line.get_color(), ls=style, alpha=0.3)
                elif event["event"] == "rollback":
                    tau.plot(row["index"], 1.0, "x", color=line.get_color())
    speed.set_ylabel("tokens/s")
    tau.set_ylabel("accepted length τ")
    won.set_ylabel("seconds won against never")
    won.axhline(0.0, color="grey", lw=0.5)
    won.set_xlabel("request")
    speed.legend()
    with mpl.rc_context({"svg.hashsalt": "specblock"}):
        same = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=120, **same)


def _rolling(rows: list[dict[str, Any]], above: str, below: str) -> list[float]:
    found = []
    for end in range(1, len(rows) + 1):
        part = rows[max(0, end - _SMOOTH) : end]
        found.append(sum(r[above] for r in part) / max(1e-9, sum(r[below] for r in part)))
    return found
