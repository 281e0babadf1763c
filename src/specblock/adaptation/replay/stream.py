"""A stream of prompts under several policies of adaptation, request by request in turn.

Every contender has its own copy of the drafter, its budgets and its adaptation; all share the
target. Each request is answered by all of them, one right after the other, in an order drawn anew:
what the machine does besides slows them all alike. Of those that learn in gaps each has a clock
(:mod:`specblock.adaptation.replay.clock`) on which requests come; in a gap it learns for real until
the next one comes or there is nothing left to do, and the rest of the gap passes at once. An
interrupted run goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from specblock.adaptation.adapter import Adaptation
from specblock.adaptation.replay.clock import Clock, arrivals
from specblock.adaptation.replay.contenders import Contender, Name
from specblock.adaptation.replay.poison import LyingReducer
from specblock.adaptation.replay.report import NEVER, Row, report_of
from specblock.errors import ConfigError, ContextError
from specblock.storage import write_atomically

__all__ = ["Plan", "Request", "former_rows", "replay_stream"]


@dataclass(frozen=True)
class Request:
    """One prompt of a stream: what :meth:`Speculator.encode` takes, and its name and domain."""

    id: str
    task: str
    prompt: Any


@dataclass(frozen=True)
class Plan:
    """What a replay does.

    Attributes:
        policies: of :data:`specblock.adaptation.replay.contenders.POLICIES`; with ``+at-once``
            behind it one updates between two requests even where there are gaps.
        loads: shares of the machine's time that requests would take. Where given, requests arrive,
            and those that learn do so in the gaps of each load.
        seed: of the order of the contenders and of the arrivals.
        poison: requests, first and behind the last, of which the feedback lies.
        environment: what the figures are measured on, for the report.
        out: JSON report, written at every checkpoint. A report there with the same settings is gone
            on with; the adaptations' states are kept beside it, in ``OUT.adapt``.
        checkpoint_every: so many requests.
    """

    policies: Sequence[str]
    loads: Sequence[float] = ()
    seed: int = 0
    poison: tuple[int, int] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    checkpoint_every: int = 10

    def arrivals(self, rows: Sequence[Row]) -> dict[float, list[float]]:
        """By load when the requests so far came, and when the next one does: at the pace of never,
        or of the first policy where never is not among them."""
        base = NEVER if NEVER in self.policies else rows[0].policy if rows else ""
        seconds = [row.seconds for row in rows if row.policy == base]
        return {load: arrivals(seconds, load, self.seed) for load in self.loads}


def replay_stream(
    contenders: dict[Name, Contender],
    requests: Sequence[Any],
    plan: Plan,
    settings: dict[str, Any],
    rows: Sequence[Row] = (),
    progress: Callable[[int, int, dict[str, Any]], None] = lambda done, of, report: None,
) -> dict[str, Any]:
    """Answer ``requests`` in order with each of ``contenders``.

    Args:
        requests: what the contenders take, with an ``id`` and a ``task``.
        settings: for the report.
        rows: of the requests that are done already, see :func:`former_rows`.

    Returns:
        The report, see :func:`specblock.adaptation.replay.report.report_of`.
    """
    rows = list(rows)
    done = rows[-1].index + 1 if rows else 0
    days = {name: _Day(contenders[name], name, plan, rows) for name in contenders}

    def report_so_far() -> dict[str, Any]:
        names = [str(name) for name in contenders]
        return report_of(rows, names, settings, plan.environment, plan.arrivals(rows))

    report = report_so_far()
    for index in range(done, len(requests)):
        lying = plan.poison is not None and plan.poison[0] <= index < plan.poison[1]
        _poison(contenders.values(), lying)
        order = random.Random(f"{plan.seed}:{index}").sample(list(days), len(days))
        rows += _answered(days, order, requests[index], index, plan.arrivals(rows))
        last = index + 1 == len(requests)
        if last or (index + 1) % plan.checkpoint_every == 0:
            _keep(contenders.values(), last)
            report = report_so_far()
            if plan.out is not None:
                write_atomically(plan.out, json.dumps(report, indent=1) + "\n")
            progress(index + 1, len(requests), report)
    return report


class _Day:
    """One contender's: what it answers, and when it has time to learn."""

    def __init__(self, contender: Contender, name: Name, plan: Plan, rows: Sequence[Row]):
        self._contender, self._name = contender, name
        self._clock = Clock()
        if name.load is not None:
            own = [row for row in rows if row.policy == str(name)]
            for row, at in zip(own, plan.arrivals(rows)[name.load], strict=False):
                self._clock.answer(at, row.delay, row.seconds)

    def answer(
        self, request: Any, index: int, at: dict[float, list[float]]
    ) -> tuple[Row, list[int]]:
        """A request's row and tokens; ``at`` by load: arrivals, this one's last."""
        adaptation = self._contender.adaptation
        journal = getattr(adaptation, "journal", None)
        logged = 0 if journal is None else journal.written
        delay = learned = 0.0
        if self._name.load is not None:
            delay, learned = self._learn_until(at[self._name.load][-1])
        answered = self._contender.answer(request)
        if self._name.load is not None:
            self._clock.answer(at[self._name.load][-1], delay, answered.seconds)
        row = Row(
            index=index,
            id=request.id,
            task=request.task,
            policy=str(self._name),
            tokens=len(answered.token_ids),
            seconds=answered.seconds,
            rounds=answered.rounds,
            round_tokens=answered.round_tokens,
            identical=True,
            delay=delay,
            learned=learned,
            events=[] if journal is None else journal.since(logged),
        )
        return row, answered.token_ids

    def _learn_until(self, arrival: float) -> tuple[float, float]:
        """Seconds that the request waited until a step made room, and those of all steps."""
        gap, more = self._clock.gap(arrival), True
        if not gap:
            return 0.0, 0.0
        clock = self._contender.clock
        began = clock()
        while more and clock() - began < gap:
            more = self._contender.adaptation.rest(lambda: clock() - began >= gap)
        learned = clock() - began
        delay = max(0.0, learned - gap)
        self._contender.adaptation.came(gap + delay, [delay])
        return delay, learned


def _answered(
    days: dict[Name, _Day], order: Sequence[Name], request: Any, index: int,
    at: dict[float, list[float]],
) -> list[Row]:  # fmt: skip
    """One request by every contender; nothing where it does not fit the context."""
    try:
        found = {name: days[name].answer(request, index, at) for name in order}
    except ContextError:
        return []
    rows = [found[name] for name in days]
    return [replace(row, identical=tokens == rows[0][1]) for row, tokens in rows]


def former_rows(out: Path | None, settings: dict[str, Any]) -> list[Row]:
    """The rows of a report that can be gone on with; none without one.

    Raises :class:`ConfigError` where it is no report, or one of other settings.
    """
    if out is None or not out.exists():
        return []
    try:
        former = json.loads(out.read_text(encoding="utf-8"))
        same = former["settings"] == json.loads(json.dumps(settings))
        rows = [Row(**row) for row in former["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{out} holds no report of bench adapt: name another file.") from error
    if not same:
        raise ConfigError(f"{out} holds a report with other settings: name another file.")
    return rows


def _poison(contenders: Iterable[Contender], lying: bool) -> None:
    for adaptation in (contender.adaptation for contender in contenders):
        if isinstance(adaptation, Adaptation):
            honest = getattr(adaptation.reducer, "honest", adaptation.reducer)
            drafted = adaptation.drafter.model.t2d
            adaptation.reducer = LyingReducer(honest, drafted) if lying else honest


def _keep(contenders: Iterable[Contender], last: bool) -> None:
    """Save every adaptation; after the last request end them too."""
    for contender in contenders:
        if last:
            contender.close()
        elif contender.adaptation is not None:
            contender.adaptation.save()
