"""What a drafter is, and what it is told about how much to draft."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from specblock.budget.controller import BudgetController, CopiesController
from specblock.budget.survival import SurvivalModel, Trials
from specblock.tree.draft_tree import DraftTree

if TYPE_CHECKING:
    from specblock.drafters.proposing.proposal import Proposal
    from specblock.drafters.proposing.together import Drafting


class Budget(Protocol):
    """How much to draft in a round; asked by the loop before it and while the tree grows.

    :class:`specblock.budget.controller.BudgetController` answers from measured costs,
    :class:`FixedBudget` with constants.
    """

    model: SurvivalModel
    shares: bool  # whether nodes are chosen together with other texts', as measured budgets do

    def begin(self, pairs: int = 1) -> None:
        """Another text; the drafter's first forward has to read so many pairs of it."""

    def affords(self) -> bool:
        """Whether anything may be verified in the next round."""

    def speculate(self, copied: DraftTree | None = None) -> bool:
        """Whether the drafter is asked in this round; ``copied`` is what the text suggests."""

    def copies(self) -> DraftTree | None:
        """What is verified of ``copied`` in a round without the drafter."""

    @property
    def copied_survival(self) -> Tensor | None:
        """Of the copies of this round, float [N+1]; read where :meth:`copies` names any."""

    def update(self, log_probs: Tensor, classes: Tensor, trials: Trials) -> None:
        """After a round of the drafter: fields of the verified tree, trials of acceptance."""

    def update_without(self, tokens: int = 1, nodes: int = 0) -> None:
        """After a round without the drafter, which verified ``nodes`` and yielded ``tokens``."""

    def another(self) -> Budget:
        """The budget of another text, which learns with this one."""

    def in_company(self, texts: int, rows: int) -> None:
        """Before a step: so many texts are written in it, and its forward has so many rows without
        any draft node."""

    def asks(self, together: int) -> bool:
        """Whether the drafter is asked, where so many texts of the step do."""

    def drawn(self, tokens: list[int]) -> None:
        """After any round: what the target drew."""

    def leaves(self, leaf_survival: Tensor, max_leaves: int) -> int:
        """How many of the leaves start a block; float [n], P(the walk ends there), falling."""

    def nodes(self, survival: Tensor, later: Tensor | None = None) -> int:
        """How many nodes to verify; float [C], P(the walk gets there), falling."""


class FixedBudget:
    """Every leaf the policy allows, and the same number of nodes each round (the paper's rule)."""

    shares = False

    def __init__(self, nodes: int = 60, leaves: int = 28):
        self.model = SurvivalModel.fresh()
        self.asking = True
        self._nodes, self._leaves = nodes, leaves

    def speculate(self, copied: DraftTree | None = None) -> bool:
        return self.asking

    def copies(self) -> DraftTree | None:
        """Copies alone are never verified."""
        return None

    def another(self) -> FixedBudget:
        """It knows nothing of texts, so it serves all."""
        return self

    def in_company(self, texts: int, rows: int) -> None:
        """A fixed budget is the same in company."""

    def asks(self, together: int) -> bool:
        return self.asking

    def begin(self, pairs: int = 1) -> None:
        """Nothing is remembered from the text before."""

    def affords(self) -> bool:
        return True

    def leaves(self, leaf_survival: Tensor, max_leaves: int) -> int:
        return min(self._leaves, int(leaf_survival[:max_leaves].count_nonzero()))

    def nodes(self, survival: Tensor, later: Tensor | None = None) -> int:
        return min(self._nodes, len(survival))

    def update(self, log_probs: Tensor, classes: Tensor, trials: Trials) -> None:
        """A fixed budget learns nothing."""

    def update_without(self, tokens: int = 1, nodes: int = 0) -> None:
        """A fixed budget learns nothing."""

    def drawn(self, tokens: list[int]) -> None:
        """A fixed budget learns nothing."""


class Drafter(Protocol):
    """Proposes trees from the target's features; never sees the target itself.

    One alignment everywhere: pair i is (features of position i, token i + 1). After a round that
    accepts a tokens and a bonus exactly a + 1 pairs are observed.
    """

    feature_layers: tuple[int, ...]  # 0-based; output of decoder layer i
    max_nodes: int  # no tree has more draft nodes
    prompt_pairs: int  # most pairs of a prompt that it reads

    def another(self) -> Drafter:
        """A drafter of the same network and settings for another text, to be used beside this."""

    def reset(self, capacity: int) -> None:
        """Start an empty sequence of up to ``capacity`` positions."""

    def prefill(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's pairs: ``features [S, F * H]``, ``tokens`` int64 [S]."""

    def drafting(
        self, root_token: int, budget: Budget, copied: DraftTree | None = None
    ) -> Drafting[Proposal]:
        """A coroutine (:mod:`specblock.drafters.proposing.together`) whose result continues
        ``root_token``, the newest token.

        ``copied`` is what the text itself suggests; its nodes are among the candidates.
        """

    def observe(self, features: Tensor, tokens: Tensor) -> None:
        """The pairs that a round added. Costs nothing: they enter with the next first block."""

    def shape_name(self) -> str:
        """Names the shape of the network and of the rounds, for keeping measured costs apart."""

    def measurements(
        self, features: Tensor, tokens: Tensor, pairs: tuple[int, ...], leaves: tuple[int, ...]
    ) -> tuple[dict[int, Callable[[], object]], dict[int, Callable[[], object]]]:
        """Calls to time, growing the tree included: a first forward by number of pairs, and a later
        one by number of leaves; empty where there is none.

        ``features [S, F * H]`` and ``tokens`` int64 [S] are a context to draft from.
        """


__all__ = ["Budget", "BudgetController", "CopiesController", "Drafter", "FixedBudget"]
