"""One text from its prompt to its end, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.sequence import RoundObserver, Seat, Sequence
from specblock.engine.statistics import GenerationStats
from specblock.engine.step import step
from specblock.target.model import Target
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams

__all__ = ["decode", "plain_logits"]


def decode(
    target: Target,
    drafter: Drafter | None,
    budget: Budget | None,
    prompt: list[int],
    params: SamplingParams,
    max_new_tokens: int,
    stats: GenerationStats,
    observer: RoundObserver | None = None,
    copies: TextCopies | None = None,
    until: Callable[[int], bool] | None = None,
) -> Iterator[list[int]]:
    """Yield the new tokens round by round, the prefill's first token to begin with.

    Ends when ``max_new_tokens`` have been yielded, the target's context is full or ``until`` holds.
    ``until`` is told of every token of the text, once and in order; the one for which it holds is
    the last, and nothing is drawn after it. The caller may stop earlier by closing the iterator.
    Fills in ``stats``; shows ``observer`` what it does. With a drafter, ``copies`` adds what the
    text suggests to what the network drafts.

    Raises:
        ContextError: the prompt is empty or leaves no room for a token.
        ModelError: the target leaves no token possible; its logits hold NaN, say.
    """
    seat = Seat(drafter, budget, budget, copies)
    text = Sequence(target, seat, prompt, params, max_new_tokens, stats, observer, until)
    try:
        while not text.finished:
            (tokens,) = step(target, [text])
            if text.error is not None:
                raise text.error
            if tokens:
                yield tokens
    finally:
        text.close()


def plain_logits(target: Target, ids: list[int]) -> Tensor:
    """The target's logits ``[V]`` after ``ids``, as plain decoding sees them (one row at the end).

    For judging a divergence: the last token is fed alone, by the kernels plain decoding takes.
    """
    target.reset(len(ids) + 1)
    if len(ids) > 1:
        target.prefill(torch.tensor(ids[:-1], device=target.device))
    return target.verify(DraftTree.root_only(ids[-1], device=target.device)).logits[0]
