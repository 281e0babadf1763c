"""Where a round's time goes, operator by operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from specblock.bench.measure.contender import Contender
from specblock.config import GenerationConfig
from specblock.engine.step import PARTS
from specblock.errors import ContextError

__all__ = ["OperatorTime", "RoundProfile", "profile_rounds"]

REST = "rest"


@dataclass(frozen=True)
class OperatorTime:
    """An operator in a part of the round: its own milliseconds and its calls, of a mean round."""

    part: str
    name: str
    milliseconds: float
    calls: float


@dataclass(frozen=True)
class RoundProfile:
    """A mean round of a method under PyTorch's profiler, which slows small operators down.

    Attributes:
        tokens: a round yields.
        milliseconds, operators: by part of the round (draft, verify, commit, rest): time in
            operators, and how many are called from Python.
        kernels: launched on the GPU, all parts together; 0 on a CPU.
        by_operator: the longest first.
    """

    rounds: int
    tokens: float
    milliseconds: dict[str, float]
    operators: dict[str, float]
    kernels: float
    by_operator: list[OperatorTime]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def profile_rounds(
    contender: Contender, ids: Sequence[int], config: GenerationConfig, *, most: int = 40
) -> RoundProfile:
    """Profile the rounds of one answer, all but the first two; keeps ``most`` operators.

    Raises :class:`ContextError` if the answer ends before.
    """
    speculator = contender.speculator
    target = speculator.target
    activities = [ProfilerActivity.CPU]
    if target.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    drafts = speculator.drafter is not None
    chunks = speculator.stream(list(ids), config, use_drafter=drafts)
    # the prefill's token, and the round that reads the prompt
    before = next((c.stats.rounds for c in chunks if c.stats.rounds == 2), None)
    if before is None:
        raise ContextError("The answer ended within two rounds; allow more new tokens.")
    tokens, last = 0, None
    with profile(activities=activities) as recorded:
        for chunk in chunks:
            tokens, last = tokens + len(chunk.token_ids), chunk
    rounds = last.stats.rounds - before if last is not None else 0
    if rounds < 1:
        raise ContextError("The answer ended within two rounds; allow more new tokens.")
    return _summary(recorded.events(), rounds, tokens, most)


def _summary(events: Any, rounds: int, tokens: int, most: int) -> RoundProfile:
    milliseconds = dict.fromkeys((*PARTS, REST), 0.0)
    operators = dict.fromkeys((*PARTS, REST), 0.0)
    by_operator: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    kernels = 0
    for event in events:
        if event.device_type.name == "CUDA":
            kernels += 1
        elif event.name not in PARTS:
            part, parent = _part(event), event.cpu_parent
            taken = event.self_cpu_time_total / 1e3 / rounds
            milliseconds[part] += taken
            operators[part] += (parent is None or parent.name in PARTS) / rounds
            row = by_operator[part, event.name]
            row[0], row[1] = row[0] + taken, row[1] + 1 / rounds
    longest = sorted(by_operator.items(), key=lambda item: -item[1][0])[:most]
    rows = [OperatorTime(part, name, *row) for (part, name), row in longest]
    return RoundProfile(rounds, tokens / rounds, milliseconds, operators, kernels / rounds, rows)


def _part(event: Any) -> str:
    """The part of the round that an event lies in."""
    while event is not None:
        if event.name in PARTS:
            return event.name
        event = event.cpu_parent
    return REST
