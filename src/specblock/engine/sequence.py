"""One text being written: everything that is its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.drafting import Round, start
from specblock.engine.statistics import GenerationStats
from specblock.errors import ContextError, ModelError
from specblock.own import Own
from specblock.target.model import Target
from specblock.target.pieces import Piece, TargetOutput
from specblock.target.text import Text
from specblock.tree.accept import Acceptance, accept
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import NoPossibleTokenError, SamplingParams, draw

__all__ = ["RoundObserver", "Seat", "Sequence", "Told", "capacity_for", "check_prompt"]

_log = logging.getLogger("specblock")
# of a draw: the verified tree (None: the prompt's last token), the target's raw logits [N + 1, V],
# the visited nodes, and the token that was drawn at each of them
Told = Callable[[DraftTree | None, Tensor, list[int], list[int]], None]


class RoundObserver(Protocol):
    """Looks on while a text is generated."""

    def prefilled(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's pairs, as the drafter is shown them."""

    def verified(
        self, tree: DraftTree, logits: Tensor, features: Tensor, accepted: Acceptance
    ) -> None:
        """A round: the target's raw logits of every node and the features of the accepted path."""


@dataclass(eq=False)
class Seat:
    """What a text drafts with; nobody else uses it meanwhile. ``drafter`` None decodes plainly.

    ``sampling_budget`` is for sampled texts, ``budget`` for greedy ones.
    """

    drafter: Drafter | None
    budget: Budget | None
    sampling_budget: Budget | None
    copies: TextCopies | None = None

    def another(self) -> Seat:
        """One for another text, which shares the network and what the budgets learn."""
        parts = (self.drafter, self.budget, self.sampling_budget, self.copies)
        return Seat(*(None if part is None else part.another() for part in parts))


class Sequence:
    """A text between its prompt and its end; its target's and its drafter's state.

    Args:
        target: shared with others.
        seat: what it drafts with.
        prompt: token ids.
        until: told of every new token, once and in order; the one for which it holds is the last.
        stats: filled in.
        observer: shown what the target verified, where there is a drafter.
        told: of every draw, with a drafter or without.

    Attributes:
        context: prompt and new tokens.
        finished: nothing more will come.
        error: what its own logits processors or its logits raised; then it is finished, too.
        drafting_error: what its drafter raised; the text has gone on without it.

    Raises :class:`ContextError` for an empty prompt or one that leaves no room for a token.
    """

    def __init__(
        self,
        target: Target,
        seat: Seat,
        prompt: list[int],
        params: SamplingParams,
        max_new_tokens: int,
        stats: GenerationStats,
        observer: RoundObserver | None = None,
        until: Callable[[int], bool] | None = None,
        told: Told | None = None,
    ):
        check_prompt(prompt, target)
        self.target, self.seat, self.params = target, seat, params
        self.budget = seat.budget if params.greedy else seat.sampling_budget
        self.stats, self.observer, self._until, self._told = stats, observer, until, told
        self.context, self.prompt_length = list(prompt), len(prompt)
        self._room = target.positions.room_after(len(prompt), max_new_tokens)
        self.finished, self._round = False, None
        self.error: Exception | None = None
        self.drafting_error: Exception | None = None
        self._prompt = torch.tensor(prompt, device=target.device)
        nodes = seat.drafter.max_nodes if seat.drafter else 0
        self.capacity = capacity_for(target, len(prompt), self._room, nodes)
        self.text: Text | None = target.open(self.capacity, self._prompt)
        # features of all positions so far
        self._shown: list[Tensor] = [] if self.text.known is None else [self.text.known]
        stats.prompt_tokens, stats.cached_tokens = len(prompt), self.text.length

    @property
    def entering(self) -> bool:
        """Whether the target has not read all of the prompt yet."""
        return len(self.context) == self.prompt_length

    def close(self, *, sound: bool = True) -> None:
        """Give back what the target keeps of the text; a second time does no harm.

        ``sound``: later texts may begin with its positions.
        """
        self.finished = True
        if self.text is None:
            return
        if sound and self._shown:
            tokens = torch.tensor(self.context[: self.text.length])
            self.target.release(self.text, tokens, torch.cat(self._shown))
        else:
            self.target.release(self.text)
        # who asked may be told of draws: without a circle all of it goes at once, not when Python
        # next looks for circles
        self.text, self._shown, self._told = None, [], None

    # -- the prompt -----------------------------------------------------------------------------

    def next_piece(self, most: int) -> Piece:
        """The next part of the prompt, of at most ``most`` tokens."""
        start = self.text.length
        return self.target.prompt_piece(self.text, self._prompt[start : start + most], self._prompt)

    def read(self, piece: Piece, output: TargetOutput) -> list[int]:
        """A part of the prompt was read; the first token if that was the last part."""
        self.text.cache.advance(len(piece))
        self._shown.append(output.features)
        if self.text.length < self.prompt_length:
            return []
        features = torch.cat(self._shown)
        root = self._drawn(
            lambda: draw(
                output.logits[-1], self.params, self.context, self.prompt_length, self.prompt_length
            )
        )
        self.context.append(root)
        self.stats.new_tokens = 1
        if self._told is not None:
            self._told(None, output.logits[-1:], [0], [root])
        if self.seat.drafter is not None:
            self._drafting(self._start, features)
        self._is_end(root)
        return [root]

    def _start(self, features: Tensor) -> None:
        drafter, following = self.seat.drafter, torch.tensor(self.context[1:])
        pairs = features, following.to(self.target.device)
        drafter.reset(self.capacity)
        drafter.prefill(*pairs)
        if self.observer is not None:
            self.observer.prefilled(*pairs)
        start(drafter, self.budget, self.seat.copies, self.context, self._room, features)

    # -- a round --------------------------------------------------------------------------------

    def round(self, texts: int, rows: int) -> Round | None:
        """Begin a round of a step of so many texts (:meth:`Budget.in_company`); None: plain."""
        seat, self._round = self.seat, None
        if seat.drafter is not None and self.drafting_error is None:
            self.budget.in_company(texts, rows)
            root, device = self.context[-1], self.target.device
            self._round = Round(seat.drafter, self.budget, seat.copies, root, device)
        return self._round

    def fitting(self, tree: DraftTree | None) -> DraftTree:
        """``tree`` without what lies beyond the end of the text; without one the root alone."""
        if tree is None:
            return DraftTree.root_only(self.context[-1], self.target.device)
        return tree.up_to(self.target.positions.depth_left(self.text.length))

    def take(self, tree: DraftTree, output: TargetOutput) -> list[int]:
        """The target has verified ``tree``: walk down it, keep the path, tell the drafter."""
        accepted = self._drawn(
            lambda: accept(
                tree, output.logits, self.params, self.context, self.prompt_length,
                len(self.context), self._is_end,
            )
        )  # fmt: skip
        path = torch.tensor(accepted.path, device=self.target.device)
        self.target.commit(path, self.text)
        self.context += accepted.tokens
        self._shown.append(output.features[path])
        if self._told is not None:
            self._told(tree, output.logits, accepted.path, accepted.tokens)
        if self._round is not None:
            self._drafting(self._tell, tree, output, accepted)
        self.stats.record(len(accepted.tokens), tree.num_draft)
        self.stats.new_tokens += len(accepted.tokens)
        return accepted.tokens

    def _tell(self, tree: DraftTree, output: TargetOutput, accepted: Acceptance) -> None:
        shown = self._shown[-1]
        self.seat.drafter.observe(shown, torch.tensor(accepted.tokens, device=self.target.device))
        if self.observer is not None:
            self.observer.verified(tree, output.logits, shown, accepted)
        self._round.report(tree, accepted.tokens, accepted.trials, shown)

    def _drafting(self, work: Callable[..., None], *arguments: object) -> None:
        """What concerns the drafter alone: the text does not need it."""
        with Own() as own:
            work(*arguments)
        if own.error is not None:
            self.stop_drafting(own.error)

    def stop_drafting(self, error: Exception) -> None:
        """The drafter has failed: nobody knows in what state, so it is left alone. The text is what
        it would have been; the budget learns nothing more from it."""
        self.drafting_error, self._round, self.budget = error, None, None
        _log.warning(
            "Drafting failed, the answer goes on plainly: %s: %s", type(error).__name__, error
        )
        _log.debug("where it failed", exc_info=error)

    def clocked(self, draft: float, verify: float, whole: float) -> None:
        """Seconds of the step."""
        self.stats.draft_seconds += draft
        self.stats.verify_seconds += verify
        self.stats.seconds += whole

    def waited(self, seconds: float) -> None:
        """Seconds of a step in which a part of the prompt was read."""
        self.stats.prefill_seconds += seconds
        self.stats.seconds += seconds

    def _is_end(self, token: int) -> bool:
        self._room -= 1
        asked = self._until is not None and self._until(token)
        self.finished = asked or self._room <= 0
        return self.finished

    @staticmethod
    def _drawn(draw_tokens: Callable):
        try:
            return draw_tokens()
        except NoPossibleTokenError as error:
            raise ModelError(str(error)) from None


def capacity_for(target: Target, prompt: int, room: int, nodes: int) -> int:
    """Positions of the target's cache that a text may need: of its prompt, of ``room`` new tokens
    as far as the context holds them, of a tree of ``nodes`` and its root."""
    return prompt + min(room, target.context_length - prompt) + nodes + 1


def check_prompt(prompt: list[int], target: Target) -> None:
    """Raises :class:`ContextError` for an empty prompt or one that leaves no room for a token."""
    if not prompt:
        raise ContextError("The prompt is empty; give at least one token.")
    if len(prompt) >= target.context_length:
        raise ContextError(
            f"The prompt has {len(prompt)} tokens and the model's context holds "
            f"{target.context_length}: nothing can follow; shorten the prompt."
        )
