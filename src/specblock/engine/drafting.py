"""What is done with drafters in a step: begin a text, draft its tree, report what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specblock.budget.sharing import share
from specblock.budget.survival import Trials
from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.proposing.proposal import Proposal
from specblock.drafters.proposing.together import together
from specblock.own import Own
from specblock.tree.draft_tree import DraftTree

__all__ = ["Round", "draft_all", "start"]


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


@dataclass(eq=False)
class Round:
    """One text's part of a step.

    Attributes:
        root: the newest token. device: of the tree.
        copied: what the text suggests.
        asked: whether the drafter was.
        proposal: what may be verified; None: nothing but the root.
        nodes: how much of it is.
        error: what drafting raised; then nothing but the root is verified.
    """

    drafter: Drafter
    budget: Budget
    copies: TextCopies | None
    root: int
    device: torch.device | str
    copied: DraftTree | None = None
    asked: bool = False
    proposal: Proposal | None = field(default=None, repr=False)
    nodes: int = 0
    error: Exception | None = None

    def trying(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What a part of the round gives; None where it fails, and then ``error`` says how."""
        with Own() as own:
            return work(*arguments)
        return self.fail(own.error)

    def fail(self, error: Exception) -> None:
        """Nothing is drafted for this text."""
        self.error, self.asked, self.proposal, self.nodes = error, False, None, 0

    def begin(self) -> None:
        """Look for copies, and decide whether the drafter is asked."""
        if self.copies is not None and self.budget.affords():
            self.copied = self.copies.tree(self.root, self.device)
        self.asked = self.budget.speculate(self.copied)

    def take(self, proposal: Proposal) -> None:
        """What the drafter proposed."""
        self.proposal = proposal
        self.nodes = self.budget.nodes(proposal.reached, proposal.later_of_reached)

    def take_copies(self) -> None:
        """The drafter was not asked."""
        copies = self.budget.copies()
        if copies is not None:
            survival = self.budget.copied_survival
            self.proposal = Proposal(self.copied, survival, self.copied.num_draft)
            self.nodes = copies.num_draft

    def tree(self) -> DraftTree:
        """What is verified."""
        if self.proposal is None:
            return DraftTree.root_only(self.root, self.device)
        return self.proposal.best(self.nodes)

    def report(
        self, tree: DraftTree, tokens: list[int], trials: Trials, features: Tensor | None = None
    ) -> None:
        """Tell the budget, and the text that is copied from, what became of ``tree``.

        ``features``: of the accepted path.
        """
        if self.asked:
            self.budget.update(tree.log_probs, tree.classes, trials)
        else:
            self.budget.update_without(len(tokens), tree.num_draft)
        if self.copies is not None:
            self.budget.drawn(tokens)
            self.copies.observe(torch.tensor(tokens), features)


def draft_all(rounds: Sequence[Round], rows: int) -> list[DraftTree]:
    """The trees of a step, drafted together and within one budget.

    Args:
        rows: of the target's forward without any draft node.
    """
    for one in rounds:
        one.trying(one.begin)
    _draft([one for one in rounds if one.error is None])
    drafted = [one for one in rounds if one.error is None]
    if len(drafted) > 1:
        _share(drafted, rows)
    trees = [one.trying(one.tree) for one in rounds]
    return [
        DraftTree.root_only(one.root, one.device) if tree is None else tree
        for one, tree in zip(rounds, trees, strict=True)
    ]


def _draft(rounds: Sequence[Round]) -> None:
    """Ask the drafters of those that ask, and take copies for the others."""
    asking = _asking(rounds)
    begun = {
        one: one.trying(one.drafter.drafting, one.root, one.budget, one.copied) for one in asking
    }
    begun = {one: drafting for one, drafting in begun.items() if one.error is None}
    failures: dict[int, Exception] = {}
    proposals = together(list(begun.values()), failures)
    for number, (one, proposal) in enumerate(zip(begun, proposals, strict=True)):
        if number in failures:
            one.fail(failures[number])
        else:
            one.trying(one.take, proposal)
    for one in rounds:
        if not one.asked and one.error is None:
            one.trying(one.take_copies)


def _asking(rounds: Sequence[Round]) -> list[Round]:
    """Those that ask, knowing how many they are: the fewer, the more a forward costs each."""
    asking, before = [one for one in rounds if one.asked], len(rounds)
    while len(asking) < before:
        before = len(asking)
        for one in asking:
            one.asked = one.budget.asks(before)
        asking = [one for one in asking if one.asked]
    return asking


def _share(rounds: Sequence[Round], rows: int) -> None:
    """Choose the nodes of all measured budgets together."""
    sharing = [one for one in rounds if one.budget.shares]
    offering = [one for one in sharing if one.proposal is not None]
    if offering:
        rows += sum(one.nodes for one in rounds if not one.budget.shares)
        reached = [one.proposal.reached[: one.budget.most(asked=one.asked)] for one in offering]
        rate = sum(one.budget.price for one in offering) / len(offering)
        chosen = share(reached, offering[0].budget.costs, rows, rate)
        for one, nodes in zip(offering, chosen, strict=True):
            one.nodes = nodes
    total = sum(one.nodes for one in rounds)
    for one in sharing:
        one.budget.beside(total - one.nodes)
