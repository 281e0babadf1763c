"""The decoding loop: draft a tree, verify it in one forward, keep what the target drew.

Plain decoding is the same loop with a tree of the root alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.profiler import record_function

from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.statistics import GenerationStats
from specblock.errors import ContextError, ModelError
from specblock.target.model import Target, TargetOutput
from specblock.tree.accept import Acceptance, accept
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import NoPossibleTokenError, SamplingParams, draw
from specblock.tree.survival import Trials

PARTS = ("draft", "verify", "commit")  # of a round, as profiles name them


class RoundObserver(Protocol):
    """Sees what a generation with a drafter computes anyway; it must change none of it."""

    def prefilled(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's pairs, as :meth:`Drafter.prefill` gets them."""

    def verified(
        self, tree: DraftTree, logits: Tensor, features: Tensor, accepted: Acceptance
    ) -> None:
        """A committed round: logits of all nodes, features of the accepted path alone."""


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
    _check(prompt, target)
    end = _End(target.positions.room_after(len(prompt), max_new_tokens), until)
    try:
        yield from _rounds(
            target, drafter, budget, list(prompt), params, stats, observer, copies, end
        )
    except NoPossibleTokenError as error:
        raise ModelError(str(error)) from None


class _End:
    """Whether a token is the text's last: there is no room left, or ``until`` says so."""

    def __init__(self, room: int, until: Callable[[int], bool] | None):
        self.room, self._until, self.reached = room, until, False

    def __call__(self, token: int) -> bool:
        self.room -= 1
        asked = self._until is not None and self._until(token)
        self.reached = asked or self.room <= 0
        return self.reached


def _rounds(
    target: Target,
    drafter: Drafter | None,
    budget: Budget | None,
    context: list[int],
    params: SamplingParams,
    stats: GenerationStats,
    observer: RoundObserver | None,
    copies: TextCopies | None,
    end: _End,
) -> Iterator[list[int]]:
    """:func:`decode` on a ``context`` of its own, up to the token that is ``end``."""
    clock = time.perf_counter
    started, prompt_length, room = clock(), len(context), end.room
    stats.prompt_tokens = prompt_length
    root, features = _prefill(target, drafter, context, params, room, observer)
    if drafter is not None:
        start(drafter, budget, copies, context, room, features)
    end(root)
    stats.prefill_seconds = clock() - started
    stats.new_tokens, stats.seconds = 1, stats.prefill_seconds
    yield [root]
    while not end.reached:
        begun = clock()
        with record_function(PARTS[0]):
            tree, asked = draft(drafter, budget, copies, context[-1], target.device)
            tree = tree.up_to(target.depth_left)
        drafted = clock()
        with record_function(PARTS[1]):
            output = target.verify(tree)
            accepted = accept(
                tree, output.logits, params, context, prompt_length, len(context), end
            )
        verified = clock()
        with record_function(PARTS[2]):
            shown = _commit(target, drafter, tree, output, accepted, observer)
            if drafter is not None:
                report(budget, copies, tree, asked, accepted.tokens, accepted.trials, shown)
        context += accepted.tokens
        stats.record(len(accepted.tokens), tree.num_draft)
        stats.new_tokens += len(accepted.tokens)
        stats.draft_seconds += drafted - begun
        stats.verify_seconds += verified - drafted
        seconds = clock() - begun
        stats.seconds += seconds
        if drafter is not None:
            budget.clocked(seconds)
        yield accepted.tokens


def start(
    drafter: Drafter,
    budget: Budget,
    copies: TextCopies | None,
    context: list[int],
    room: int,
    features: Tensor | None = None,
) -> None:
    """A new text: tell the budget, and show ``copies`` what is known of it.

    ``features``: of the prompt's pairs, where the target was asked for any.
    """
    budget.begin(max(1, min(len(context) - 1, drafter.prompt_pairs)))
    if copies is not None:
        copies.reset(len(context) + room)
        copies.observe(torch.tensor(context[1:]), features)


def draft(
    drafter: Drafter | None,
    budget: Budget | None,
    copies: TextCopies | None,
    root: int,
    device: torch.device | str,
) -> tuple[DraftTree, bool]:
    """The tree of a round, and whether the drafter was asked: its own with the copies, the copies
    alone, or just the newest token ``root``."""
    if drafter is None:
        return DraftTree.root_only(root, device), False
    looked = copies is not None and budget.affords()
    copied = copies.tree(root, device) if looked else None
    if budget.speculate(copied):
        return drafter.propose(root, budget, copied), True
    return budget.copies() or DraftTree.root_only(root, device), False


def report(
    budget: Budget,
    copies: TextCopies | None,
    tree: DraftTree,
    asked: bool,
    tokens: list[int],
    trials: Trials,
    features: Tensor | None = None,
) -> None:
    """Tell the budget, and the text that is copied from, what became of a round.

    ``features``: of the accepted path.
    """
    if asked:
        budget.update(tree.log_probs, tree.classes, trials)
    else:
        budget.update_without(len(tokens))
    if copies is not None:
        budget.drawn(tokens)
        copies.observe(torch.tensor(tokens), features)


def _commit(
    target: Target,
    drafter: Drafter | None,
    tree: DraftTree,
    output: TargetOutput,
    accepted: Acceptance,
    observer: RoundObserver | None,
) -> Tensor | None:
    """Keep the accepted path in the target's cache and show its pairs to the drafter.

    Returns:
        The path's features ``[a + 1, F * H]``, none wide where no layer is read; None without a
        drafter.
    """
    path = torch.tensor(accepted.path, device=target.device)
    target.commit(path)
    if drafter is None:
        return None
    tokens = torch.tensor(accepted.tokens, device=target.device)
    # a drafter that reads no layers is shown its tokens alone
    unseen = output.features is None
    shown = tokens.new_zeros(len(tokens), 0) if unseen else output.features[path]
    drafter.observe(shown, tokens)
    if observer is not None:
        observer.verified(tree, output.logits, shown, accepted)
    return shown


def _check(prompt: list[int], target: Target) -> None:
    if not prompt:
        raise ContextError("The prompt is empty; give at least one token.")
    if len(prompt) >= target.context_length:
        raise ContextError(
            f"The prompt has {len(prompt)} tokens and the model's context holds "
            f"{target.context_length}: nothing can follow; shorten the prompt."
        )


def _prefill(
    target: Target,
    drafter: Drafter | None,
    context: list[int],
    params: SamplingParams,
    room: int,
    observer: RoundObserver | None,
) -> tuple[int, Tensor | None]:
    """Fill the target's cache with the prompt, draw the first token, tell the drafter.

    Args:
        room: how many tokens may follow.

    Returns:
        The token, and the features of the prompt where the target was asked for any.
    """
    capacity = len(context) + room + (drafter.max_nodes if drafter else 0) + 1
    target.reset(capacity)
    ids = torch.tensor(context, device=target.device)
    output = target.prefill(ids)
    root = draw(output.logits, params, context, len(context), len(context))
    context.append(root)
    if drafter is not None:
        drafter.reset(capacity)
        following = torch.cat((ids[1:], ids.new_tensor([root])))
        drafter.prefill(output.features, following)
        if observer is not None:
            observer.prefilled(output.features, following)
    return root, output.features


def plain_logits(target: Target, ids: list[int]) -> Tensor:
    """The target's logits ``[V]`` after ``ids``, as plain decoding sees them (one row at the end).

    For judging a divergence: the last token is fed alone, by the kernels plain decoding takes.
    """
    target.reset(len(ids) + 1)
    if len(ids) > 1:
        target.prefill(torch.tensor(ids[:-1], device=target.device))
    return target.verify(DraftTree.root_only(ids[-1], device=target.device)).logits[0]
