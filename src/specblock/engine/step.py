"""A step of all texts that are being written: draft, verify in one forward, accept.

A round of the paper, for many texts at once. Texts whose prompts are not read yet take part with
the next piece of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

from torch.profiler import record_function

from specblock.engine.drafting import draft_all
from specblock.engine.sequence import Sequence
from specblock.own import Own
from specblock.target.model import Target
from specblock.target.pieces import Piece
from specblock.tree.draft_tree import DraftTree

__all__ = ["PARTS", "step"]

PARTS = ("draft", "verify", "commit")  # of a step, as profiles name them
PIECE, LEAST_PIECE = 128, 16  # rows of a step in which prompts are read; most, least of prompts


def step(target: Target, texts: Many[Sequence]) -> list[list[int]]:
    """Advance every text by one round; the new tokens of each, none while its prompt is read."""
    begun = time.perf_counter()
    decoding = [text for text in texts if not text.entering]
    waiting = [text for text in texts if text.entering]
    with record_function(PARTS[0]):
        room = max(LEAST_PIECE, PIECE - len(decoding)) if decoding else target.prefill_chunk
        pieces = _pieces(waiting, room)
        entering = waiting[: len(pieces)]
        trees = _trees(decoding, len(decoding) + sum(map(len, pieces)))
    drafted = time.perf_counter()
    with record_function(PARTS[1]):
        outputs = target.verify_all([text.text for text in decoding], trees, pieces)
    verified = time.perf_counter()
    with record_function(PARTS[2]):
        turns = zip(decoding, trees, outputs, strict=False)
        new = {text: _own(text, text.take, tree, output) for text, tree, output in turns}
        turns = zip(entering, pieces, outputs[len(decoding) :], strict=True)
        new |= {text: _own(text, text.read, piece, output) for text, piece, output in turns}
    ended = time.perf_counter()
    for text in decoding:
        text.clocked(drafted - begun, verified - drafted, ended - begun)
    if not entering:
        _clocked(decoding, ended - begun)
    for text in waiting:
        text.waited(ended - begun)
    return [new.get(text, []) for text in texts]


def _pieces(texts: Many[Sequence], most: int) -> list[Piece]:
    """The next ``most`` tokens of prompts, first come first served, so that a step stays short."""
    pieces: list[Piece] = []
    for text in texts:
        if most <= 0:
            break
        pieces.append(text.next_piece(most))
        most -= len(pieces[-1])
    return pieces


def _trees(texts: Many[Sequence], rows: int) -> list[DraftTree]:
    """What to verify of each; the forward has so many ``rows`` without any draft node."""
    rounds = {text: text.round(len(texts), rows) for text in texts}
    drafting = {text: one for text, one in rounds.items() if one is not None}
    trees = dict(zip(drafting, draft_all(list(drafting.values()), rows), strict=True))
    for text, one in drafting.items():
        if one.error is not None:
            text.stop_drafting(one.error)
    return [text.fitting(trees.get(text)) for text in texts]


def _clocked(texts: Many[Sequence], seconds: float) -> None:
    """Tell the measured budgets what a step took, those that learn together once."""
    budgets = [text.budget for text in texts if text.budget is not None and text.budget.shares]
    added, tried = sum(one.added for one in budgets), any(one.tried for one in budgets)
    for budget in {id(one.drag): one for one in budgets}.values():
        budget.clocked(seconds, added, tried=tried)


def _own(text: Sequence, work: Callable[..., list[int]], *arguments: Any) -> list[int]:
    """A text's own work; what its logits processors raise ends this text alone."""
    new: list[int] = []
    with Own() as own:
        new = work(*arguments)
    if own.error is not None:
        text.error, text.finished = own.error, True
    return new
