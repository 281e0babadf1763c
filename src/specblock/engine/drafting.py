"""What is done with a drafter in a round: begin a text, draft a tree, report what became of it."""

from __future__ import annotations

import torch
from torch import Tensor

from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.tree.draft_tree import DraftTree
from specblock.tree.survival import Trials

__all__ = ["draft", "report", "start"]


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
