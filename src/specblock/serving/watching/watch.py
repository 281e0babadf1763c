"""What is counted while answers are written, for ``/metrics`` and ``/status``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from specblock.serving.decoding.pieces import Piece, ServedAnswer
from specblock.serving.watching.metrics import Metrics

__all__ = ["Watch"]

_SPEED_SECONDS = 10.0  # of decoding over which the speed is told
_TAU_ROUNDS = 200


@dataclass
class _Seen:
    """Of one answer: when it was asked and its last piece came, and what has been counted."""

    asked: float
    last: float | None = None
    rounds: int = 0
    round_tokens: int = 0
    drafts: int = 0
    nodes: int = 0
    by_depth: list[int] = field(default_factory=list)


class Watch:
    """Counts; all but :meth:`asked` and the figures are called by the thread that computes.

    Args:
        learning: says what an adaptation has done, see :meth:`Adaptation.status`. Asked after each
            answer, in that thread, where nobody changes it meanwhile; ``learned`` keeps it.
    """

    def __init__(self, metrics: Metrics, learning: Callable[[], dict[str, Any]] | None = None):
        self.metrics, self.started = metrics, time.monotonic()
        self._learning = learning
        self.learned = None if learning is None else learning()
        self.requests = self.generated_tokens = self.cached_tokens = 0
        self._seen: dict[ServedAnswer, _Seen] = {}
        self._steps: deque[tuple[int, float]] = deque()  # tokens and seconds
        self._rounds: deque[int] = deque(maxlen=_TAU_ROUNDS)

    def asked(self, answer: ServedAnswer) -> None:
        """A request has come."""
        self.requests += 1
        self._seen.setdefault(answer, _Seen(time.monotonic()))

    def progressed(
        self, answer: ServedAnswer, pieces: list[Piece], *, ended: bool, error: Exception | None
    ) -> None:
        """Pieces have come, or the end."""
        now, metrics = time.monotonic(), self.metrics
        seen = self._seen.setdefault(answer, _Seen(now))
        for piece in pieces:
            count = len(piece.token_ids)
            if count and seen.last is None:
                metrics.first_token(now - seen.asked, answer.stats)
                metrics.queue_time.observe(max(0.0, (answer.begun or now) - seen.asked))
                self.cached_tokens += answer.stats.cached_tokens
            elif count:
                for _ in range(count):
                    metrics.between_tokens.observe((now - seen.last) / count)
            if count:
                seen.last = now
                metrics.generation_tokens.inc(count)
                self.generated_tokens += count
        self._count_rounds(answer, seen)
        if ended:
            reason = "error" if error is not None else pieces[-1].finish_reason
            self._ended(answer, reason)

    def left(self, answer: ServedAnswer) -> None:
        """It was dropped."""
        if answer in self._seen:
            self._count_rounds(answer, self._seen[answer])
            self._ended(answer, "abort")

    def _ended(self, answer: ServedAnswer, reason: str) -> None:
        seen = self._seen.pop(answer)
        self.metrics.success.labels(reason).inc()
        self.metrics.latency.observe(time.monotonic() - seen.asked)
        if self._learning is not None:
            self.learned = self._learning()

    def _count_rounds(self, answer: ServedAnswer, seen: _Seen) -> None:
        """What the answer's figures have grown by."""
        stats, metrics = answer.stats, self.metrics
        if stats.rounds > seen.rounds:
            self._rounds.extend([0] * (stats.rounds - seen.rounds - 1))
            self._rounds.append(stats.round_tokens - seen.round_tokens)
        metrics.drafts.inc(stats.speculative_rounds - seen.drafts)
        metrics.draft_tokens.inc(stats.drafted_nodes - seen.nodes)
        for depth, count in enumerate(stats.accepted_by_depth):
            before = seen.by_depth[depth] if depth < len(seen.by_depth) else 0
            metrics.accepted_tokens.inc(count - before)
            metrics.accepted_by_position.labels(str(depth)).inc(count - before)
        seen.rounds, seen.round_tokens = stats.rounds, stats.round_tokens
        seen.drafts, seen.nodes = stats.speculative_rounds, stats.drafted_nodes
        seen.by_depth = list(stats.accepted_by_depth)

    def stepped(self, tokens: int, seconds: float) -> None:
        """A step of all texts."""
        self._steps.append((tokens, seconds))
        while sum(each for _, each in self._steps) - self._steps[0][1] >= _SPEED_SECONDS:
            self._steps.popleft()

    @property
    def tokens_per_second(self) -> float | None:
        """Of all texts together, over the last seconds in which something was decoded."""
        steps = list(self._steps)
        seconds = sum(each for _, each in steps)
        return sum(tokens for tokens, _ in steps) / seconds if seconds else None

    @property
    def accepted_length(self) -> float | None:
        """tau of the last rounds."""
        rounds = list(self._rounds)
        return sum(rounds) / len(rounds) if rounds else None
