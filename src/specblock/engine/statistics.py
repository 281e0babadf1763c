"""What a generation cost and what speculation brought."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class GenerationStats:
    """Counters of one generation; seconds are wall-clock.

    ``cached_tokens`` of the prompt were known from an earlier text.
    ``rounds`` counts verifications, each of which yields at least one token.
    ``rounds_by_nodes[n]`` counts rounds that verified n draft nodes, plain ones left out.
    ``accepted_by_depth[d]`` counts rounds that accepted more than d draft tokens.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    rounds: int = 0
    speculative_rounds: int = 0
    round_tokens: int = 0  # accepted draft tokens and bonus tokens
    drafted_nodes: int = 0
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    seconds: float = 0.0
    rounds_by_nodes: Counter[int] = field(default_factory=Counter)
    accepted_by_depth: list[int] = field(default_factory=list)

    @property
    def accepted_length(self) -> float:
        """tau: accepted draft tokens plus the bonus token, pooled over rounds."""
        return self.round_tokens / self.rounds if self.rounds else 0.0

    @property
    def decode_seconds(self) -> float:
        return self.seconds - self.prefill_seconds

    @property
    def tokens_per_second(self) -> float:
        """New tokens by all seconds, prefill included."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first (which the prefill yields) by the seconds after the prefill."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def record(self, tokens: int, nodes: int) -> None:
        """One verification that yielded ``tokens`` from a tree of ``nodes`` draft nodes."""
        self.rounds += 1
        if nodes:
            self.speculative_rounds += 1
            self.rounds_by_nodes[nodes] += 1
        self.round_tokens += tokens
        self.drafted_nodes += nodes
        for depth in range(tokens - 1):
            if depth == len(self.accepted_by_depth):
                self.accepted_by_depth.append(0)
            self.accepted_by_depth[depth] += 1
