"""What a served answer says beyond its text: log-probabilities and rounds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specblock.engine.answer import Answer, Chunk
from specblock.engine.sequence import Sequence
from specblock.engine.statistics import GenerationStats
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree
from specblock.tree.source import Source

__all__ = ["LEAST", "Draw", "Piece", "ServedAnswer", "TokenLogprobs"]

MEMORY = "memory"
LEAST = -9999.0  # stands for the logarithm of 0, which JSON cannot say


@dataclass(frozen=True)
class TokenLogprobs:
    """A token with the target's own log-probability, and the most probable ones, the best first:
    ``log_softmax`` of the raw logits, before penalties, grammars, temperature and filters."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Draw:
    """One verification: the tree, the nodes that were visited, the tokens drawn at them."""

    tree: DraftTree
    path: list[int]
    tokens: list[int]


@dataclass(frozen=True)
class Piece(Chunk):
    """A chunk with one of ``logprobs`` for each of its tokens, and the ``round`` that it is of."""

    logprobs: list[TokenLogprobs] = field(default_factory=list)
    round: dict[str, Any] | None = None


class ServedAnswer(Answer):
    """An answer whose pieces say more. ``top``: how many alternatives of every token; None: no
    log-probabilities. ``rounds``: whether rounds are told. ``index``: of the choice."""

    top: int | None = None
    rounds = False
    index = 0
    begun: float | None = None  # monotonic seconds at which it was let in

    def prepared(self, index: int, top: int | None, rounds: bool) -> ServedAnswer:
        """Itself, told what is wanted of it."""
        self.index, self.top, self.rounds = index, top, rounds
        self._logprobs: list[TokenLogprobs] = []
        self._draw: Draw | None = None
        self._number = 0
        return self

    @property
    def stats(self) -> GenerationStats:
        """So far."""
        return self._stats

    def begin(self, target: Target) -> Sequence:
        """As :meth:`Answer.begin`."""
        self.begun = time.monotonic()
        return super().begin(target)

    def drawn(
        self, tree: DraftTree | None, logits: Tensor, path: list[int], tokens: list[int]
    ) -> None:
        """See :class:`specblock.engine.sequence.Sequence`."""
        if self.rounds and tree is not None:
            self._draw = Draw(tree, path, tokens)
        if self.top is not None:
            self._logprobs = [
                logprobs_of(logits[node], token, self.top)
                for node, token in zip(path, tokens, strict=True)
            ]

    def push(self, tokens: list[int]) -> tuple[Piece, bool]:
        """As :meth:`Answer.push`; what lies beyond the end of the answer is not told."""
        chunk, last = super().push(tokens)
        kept, told = len(chunk.token_ids), None
        if self._draw is not None:
            self._number += 1
            told = round_of(self._draw, self._number, kept, self._text.tokenizer)
            self._draw = None
        return Piece(**vars(chunk), logprobs=self._logprobs[:kept], round=told), last

    def end(self, complete: bool) -> Piece | None:
        """As :meth:`Answer.end`."""
        chunk = super().end(complete)
        return None if chunk is None else Piece(**vars(chunk))


def logprobs_of(logits: Tensor, token: int, top: int) -> TokenLogprobs:
    """Of a row of raw logits ``[V]``."""
    found = torch.log_softmax(logits.float(), dim=-1)
    best = found.topk(min(top, len(found))) if top else None
    pairs = [] if best is None else zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenLogprobs(token, float(found[token]), list(pairs))


def round_of(draw: Draw, number: int, kept: int, tokenizer: Any) -> dict[str, Any]:
    """A round as the page draws it; of its tokens the first ``kept`` are part of the answer."""
    tree, names = draw.tree, tokenizer.decode
    accepted = set(draw.path[: kept + 1])
    rows = zip(
        tree.tokens.tolist(), tree.parents.tolist(), tree.sources.tolist(),
        tree.log_probs.tolist(), strict=True,
    )  # fmt: skip
    return {
        "number": number,
        "bonus": names([draw.tokens[-1]]) if kept == len(draw.tokens) else "",
        "accepted": len(accepted) - 1,
        "nodes": [
            {
                # what was remembered may be somebody else's text
                "text": names([token]) if node in accepted or _source(source) != MEMORY else "",
                "parent": parent,
                "accepted": node in accepted,
                "source": _source(source),
                "log_prob": max(log_prob, LEAST),
            }
            for node, (token, parent, source, log_prob) in enumerate(rows)
        ],
    }


def _source(number: int) -> str:
    source = Source(number)
    if source.from_network:
        return "network"
    return MEMORY if source >= Source.REMEMBERED else "text"
