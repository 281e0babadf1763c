"""Decoding with what the text says already and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from specblock.drafters.base import Budget, FixedBudget
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.proposing.proposal import Proposal
from specblock.drafters.proposing.together import Drafting, alone
from specblock.tree.draft_tree import DraftTree


class LookupDrafter:
    """A :class:`specblock.drafters.base.Drafter` that copies what followed the longest match.

    Args:
        feature_layers: what the target shows; the drafter reads none of it, but a memory of earlier
            answers finds more by the last layer's states.
        settings: of :class:`TextCopies`, and raises what it raises.
    """

    prompt_pairs = 0  # no forward reads them

    def __init__(self, feature_layers: tuple[int, ...] = (), **settings: int):
        self.feature_layers = feature_layers
        self._copies = TextCopies(**settings)
        self.max_nodes = self._copies.max_nodes
        self._device = torch.device("cpu")

    def another(self) -> LookupDrafter:
        """A drafter with the same settings for another text."""
        other = copy.copy(self)
        other._copies = self._copies.another()
        return other

    def reset(self, capacity: int) -> None:
        """Start an empty sequence of up to ``capacity`` positions."""
        self._copies.reset(capacity)

    def prefill(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's tokens, all but the first, and the one after; features are not read."""
        self.observe(features, tokens)

    def observe(self, features: Tensor, tokens: Tensor) -> None:
        """The tokens that a round added, int64 [n]."""
        self._copies.observe(tokens)
        self._device = tokens.device

    def drafting(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> Drafting[Proposal]:
        """A tree after the newest token; the root alone where nothing matches."""
        yield from ()  # no forward
        tree = copied or self._copies.tree(root_token, self._device)
        return Proposal.of_tree(tree, budget.model)

    def propose(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> DraftTree:
        """The tree of a text that is alone, as large as the budget says."""
        return alone(self.drafting(root_token, budget, copied)).chosen(budget)

    def shape_name(self) -> str:
        """Names the rounds, for keeping measured costs apart."""
        own = self._copies
        return f"lookup-{own.depth}-{own.continuations}-{own.longest}"

    def measurements(
        self, features: Tensor, tokens: Tensor, pairs: tuple[int, ...], leaves: tuple[int, ...]
    ) -> tuple[dict[int, Callable[[], object]], dict[int, Callable[[], object]]]:
        """Calls to time: a search that finds something, whatever the number of pairs is.

        ``tokens`` int64 [S] are the context, said twice so that there is a match.
        """
        self.reset(2 * len(tokens))
        self.observe(features, tokens.repeat(2))
        budget = FixedBudget(8, 0)
        return {count: partial(self.propose, int(tokens[-1]), budget) for count in pairs}, {}
