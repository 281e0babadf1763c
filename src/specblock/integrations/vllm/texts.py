"""A round of drafting for the texts of an engine's batch, whose entries lie in pages.

Nothing here knows the engine. A text's entries are fetched from its pages, the drafter goes on
behind them as it does in our own engine, and what it committed is put back: the pages hold all that
a text needs, whoever had its seat in between, and may be shared by texts with the same beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from specblock.budget.survival import SurvivalModel
from specblock.drafters.base import FixedBudget
from specblock.drafters.proposing.proposal import Proposal
from specblock.drafters.proposing.together import together
from specblock.drafters.specblock.propose import SpecBlockDrafter
from specblock.errors import CheckpointError
from specblock.integrations.vllm.pages import Pages
from specblock.tree.path import best_path
from specblock.tree.policy import GrowthPolicy

__all__ = ["LEAVES", "POLICY", "Step", "Texts", "chain", "drafter_for_chains"]

# The paper's rule for giving up: where the rank head says that the first token that is not the
# best one is none of the ten best either, nothing starts behind it, and the path ends there.
POLICY = GrowthPolicy(branching=(2, 4, 6, 0))
# Blocks of the second generation, of which one is on the path that is handed over.
LEAVES = 4
_NODES = 95


@dataclass(frozen=True)
class Step:
    """What an engine's step computed for a text.

    Attributes:
        table: int [pages], the text's.
        start: position of the first of its n rows.
        features: [n, F * H] of these rows. tokens: int64 [n], the token after each.
        drafts: whether drafts are wanted; not in the middle of a prompt.
    """

    table: Tensor
    start: int
    features: Tensor
    tokens: Tensor
    drafts: bool


class Texts:
    """Drafts chains for texts in ``pages``.

    Args:
        drafter: the network with its settings, as :func:`drafter_for_chains` makes it.
        survival: what its probabilities are worth.
    """

    def __init__(self, drafter: SpecBlockDrafter, survival: SurvivalModel, pages: Pages):
        self._drafter, self._pages = drafter, pages
        self._budget = FixedBudget(_NODES, LEAVES)
        self._budget.model = survival
        self._sink = drafter.learned_entry()

    def draft(self, steps: Sequence[Step], most: int) -> list[list[int]]:
        """Of each text at most ``most`` tokens, where they are wanted; the rows are committed."""
        drafters = [self._resumed(step) for step in steps]
        proposals = together(
            [
                own.drafting(int(step.tokens[-1]), self._budget)
                if step.drafts
                else own.first_block()
                for own, step in zip(drafters, steps, strict=True)
            ]
        )
        for own, step in zip(drafters, steps, strict=True):
            self._pages.write(step.table, step.start, own.committed(step.start))
        return [
            best_path(found.tree, found.survival, most) if isinstance(found, Proposal) else []
            for found in proposals
        ]

    def _resumed(self, step: Step) -> SpecBlockDrafter:
        own = self._drafter.another()
        own.reset(step.start + len(step.tokens))
        if step.start:
            own.restore(self._sink, self._pages.read(step.table, step.start))
        own.observe(step.features, step.tokens)
        return own


def drafter_for_chains(model) -> SpecBlockDrafter:
    """The drafter of ``model`` with the settings of chains.

    Raises :class:`CheckpointError` for a network that keeps more than one entry a position.
    """
    if model.config.slots_kept != 1:
        raise CheckpointError(
            f"The drafter keeps {model.config.slots_kept} entries a position (cached_slots), and "
            "vLLM's pages have room for one; train one with `--cached-slots 1`."
        )
    return SpecBlockDrafter(model, policy=POLICY, max_leaves=LEAVES, max_nodes=_NODES)


def chain(
    drafter: SpecBlockDrafter, survival: SurvivalModel, features: Tensor, tokens: Tensor, most: int
) -> list[int]:
    """What :class:`Texts` drafts behind a whole text that nobody keeps in pages: the reference.

    Args:
        features: [S, F * H] of its positions; tokens: int64 [S], the token after each.
    """
    budget = FixedBudget(_NODES, LEAVES)
    budget.model = survival
    drafter.reset(len(tokens))
    drafter.observe(features, tokens)
    (found,) = together([drafter.drafting(int(tokens[-1]), budget)])
    return best_path(found.tree, found.survival, most)
