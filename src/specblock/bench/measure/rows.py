"""One answer of one method: what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specblock.bench.measure.contender import Answer
from specblock.bench.suites.prompts import BenchPrompt

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """One answer; times in seconds. What older files lack has a default."""

    id: str  # of the prompt; turns of one conversation share it
    turn: int
    task: str
    method: str
    order: int  # 0: this method ran first on the prompt
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    rounds: int  # verifications; the first token comes from the prefill
    accepted_length: float | None  # round_tokens / rounds
    seconds: float
    prefill_seconds: float
    draft_seconds: float
    verify_seconds: float
    identical: bool | None  # to plain decoding; None without it
    speculative_rounds: int = 0
    round_tokens: int = (
        0  # of all verifications, bonus tokens counted, an end token's followers too
    )
    draft_calls: int = 0
    offered_nodes: int = 0
    verified_nodes: int = 0
    # draft nodes verified -> rounds; JSON makes the keys strings
    rounds_by_nodes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    accepted_by_depth: tuple[int, ...] = ()  # [d]: rounds that accepted more than d draft tokens
    peak_bytes: int | None = None
    token_ids: tuple[int, ...] = ()

    @property
    def decode_seconds(self) -> float:
        return self.seconds - self.prefill_seconds

    @property
    def decode_tokens(self) -> int:
        """New tokens but the first, which the prefill yields."""
        return self.new_tokens - 1

    @property
    def round_token_count(self) -> float:
        """``round_tokens``, also of rows that have the accepted length alone."""
        return self.round_tokens or (self.accepted_length or 0.0) * self.rounds

    def to_dict(self) -> dict[str, Any]:
        lists = {name: list(getattr(self, name)) for name in ("accepted_by_depth", "token_ids")}
        return {**dataclasses.asdict(self), **lists}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """The row of a file, of this version or an older one; unknown fields are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})

    @classmethod
    def of(
        cls,
        prompt: BenchPrompt,
        turn: int,
        method: str,
        order: int,
        answer: Answer,
        identical: bool | None,
    ) -> Row:
        """What is kept of an answer."""
        generation, counts = answer.generation, answer.counts
        stats = generation.stats
        copied = (
            "new_tokens",
            "rounds",
            "speculative_rounds",
            "round_tokens",
            "seconds",
            "prefill_seconds",
            "draft_seconds",
            "verify_seconds",
        )
        return cls(
            id=prompt.id,
            turn=turn,
            task=prompt.task,
            method=method,
            order=order,
            prompt_tokens=generation.prompt_tokens,
            finish_reason=generation.finish_reason,
            accepted_length=stats.accepted_length if stats.rounds else None,
            identical=identical,
            draft_calls=counts.calls,
            offered_nodes=counts.offered,
            verified_nodes=stats.drafted_nodes,
            rounds_by_nodes={str(nodes): n for nodes, n in sorted(stats.rounds_by_nodes.items())},
            accepted_by_depth=tuple(stats.accepted_by_depth),
            peak_bytes=answer.peak_bytes,
            token_ids=tuple(generation.token_ids),
            **{name: getattr(stats, name) for name in copied},
        )
