"""How likely a draft node is on the path that the target takes.

A drafter's probabilities are systematically off: it has a smaller vocabulary, it drafts several
tokens in one pass, it was trained on other text. What matters for a budget is the probability that
a node's token is what the target draws once its parent was reached. Every verification observes
just that, for all children of every visited node, so the correction is learned while decoding.

The correction is a shift of the log-odds, one per cell of (drafter's probability, class of the
node). A node's class is its source and, within it, the bucket of its predicted rank or, of a copied
node, of its match's length: the same match means less where the network was asked and proposes
something else. With discounted sums
over a cell of hits H, misses M and of the probabilities claimed, P and Q = n - P, and a
Beta(s c, s (1 - c)) prior centred at the cell's middle c, the shift is

    log (H + s c) / (M + s (1 - c))  -  log (P + s c) / (Q + s (1 - c)):

zero without observations, so that the estimate starts at the drafter's own p, and such that a
cell's mean claim ends at its hit rate, while larger p within a cell stays more likely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from specblock.tree.draft_tree import DraftTree
from specblock.tree.source import BUCKETS, Source

BINS = 12  # of a claimed probability
CLASSES = BUCKETS * len(Source)  # `DraftTree.classes`
# Calibrations from before there were copies, and from before earlier texts were copied from.
_FORMER_CLASSES = (BUCKETS * Source.COPIED, BUCKETS * Source.REMEMBERED)
_CEILING = 0.9999  # of a probability of survival
_EDGES = torch.linspace(-5.0, 5.0, BINS - 1)  # in log-odds: p from 0.7 % to 99.3 %
_MIDDLES = torch.linspace(-5.5, 5.5, BINS, dtype=torch.float64).sigmoid().unsqueeze(1)

Trials = Sequence[Sequence[tuple[int, bool]]]  # `Acceptance.trials`


# eq=False: comparing tensors field by field has no single truth value.
@dataclass(frozen=True, eq=False)
class SurvivalModel:
    """Calibration of a drafter's probabilities; a value, `update` returns the next one.

    Attributes:
        counts: float64 [3, 12, 28] on the CPU: discounted sums over the children of visited nodes
            of 1, of the probability claimed and of hits, per cell.
        strength: pseudo-observations with which a cell holds on to the drafter's own claim.
        discount: what a round leaves of the weight of earlier ones.
    """

    counts: Tensor
    strength: float = 8.0
    discount: float = 0.999

    @staticmethod
    def fresh(strength: float = 8.0, discount: float = 0.999) -> SurvivalModel:
        """The model that trusts the drafter. Raises ValueError for a value out of range."""
        if not strength > 0 or not 0 < discount <= 1:
            raise ValueError("strength must be above 0 and discount above 0, at most 1.")
        empty = torch.zeros(3, BINS, CLASSES, dtype=torch.float64)
        return SurvivalModel(empty, strength, discount)

    def conditional(self, log_probs: Tensor, classes: Tensor) -> Tensor:
        """Probability that the target draws a node's token at its parent, float32 [N].

        Args:
            log_probs: float [N], the drafter's log p(token | path to the parent); -inf gives 0.
            classes: int64 [N].
        """
        odds = _log_odds(log_probs)
        bins = torch.bucketize(odds, _EDGES.to(odds.device))
        shifts = self._shifts.to(odds)
        return (odds + shifts[bins, classes.clamp(0, CLASSES - 1)]).sigmoid()

    def survival(self, log_probs: Tensor, classes: Tensor, parents: Tensor) -> Tensor:
        """Probability that the walk of acceptance reaches each node, float32 [N+1].

        Calibrated conditional probabilities multiplied along the path. The children of one node
        exclude each other, so theirs are scaled down where they add up to more than 1. No host
        synchronisation.

        Args:
            log_probs: float [N+1]; classes: int64 [N+1]; parents: int64 [N+1], as in a
                DraftTree: node 0 is the root (survival 1, its other values are not read) and
                parents[0] is -1.
        """
        # The ceiling keeps a child's product below its parent's, however they are rounded.
        conditional = self.conditional(log_probs, classes).clamp(max=_CEILING)
        parents = parents.clamp(min=0)
        conditional[0] = 0.0  # not a child of its own
        sums = torch.zeros_like(conditional).index_add(0, parents, conditional)
        reached = conditional / sums.clamp(min=1.0).index_select(0, parents)
        reached[0] = 1.0
        # Every node multiplies in what lies above it, each time twice as far up.
        for _ in range((len(parents) - 1).bit_length()):
            reached = reached * reached.index_select(0, parents)
            parents = parents.index_select(0, parents)
        return reached

    def pool_survival(self, log_probs: Tensor, classes: Tensor, parents: Tensor) -> Tensor:
        """`survival` of a pool whose nodes hang from a root that is not in it, float32 [C].

        Args:
            log_probs: float [C], -inf for invalid nodes; classes: int64 [C]; parents: int64
                [C], indices into the pool, -1 for the root.
        """

        def rooted(values: Tensor, first: int) -> Tensor:
            return torch.nn.functional.pad(values, (1, 0), value=first)

        tree = rooted(log_probs, 0), rooted(classes, 0), rooted(parents + 1, -1)
        return self.survival(*tree)[1:]

    def update(
        self, log_probs: Tensor, classes: Tensor, trials: Trials, *, aged: bool = True
    ) -> SurvivalModel:
        """The model after one more round.

        Args:
            log_probs: float [N+1] and classes: int64 [N+1] of the verified tree.
            trials: per visited node, (child, whether the target drew it) for all its children.
            aged: earlier rounds lose weight; False for further outcomes of the same round.
        """
        counts = self.counts * (self.discount if aged else 1.0)
        outcomes = [outcome for children in trials for outcome in children]
        if outcomes:
            nodes = torch.tensor([node for node, _ in outcomes], device=log_probs.device)
            odds = _log_odds(log_probs[nodes]).cpu()
            own = classes[nodes].clamp(0, CLASSES - 1).cpu()
            hits = torch.tensor([hit for _, hit in outcomes], dtype=torch.float64)
            seen = torch.stack((torch.ones_like(hits), odds.sigmoid().double(), hits))
            cells = torch.bucketize(odds, _EDGES) * CLASSES + own
            counts.view(3, -1).index_add_(1, cells, seen)
        return replace(self, counts=counts)

    def to_dict(self) -> dict:
        """Plain numbers and lists, fit for JSON."""
        own = {"strength": self.strength, "discount": self.discount}
        return {"counts": self.counts.tolist(), **own}

    @staticmethod
    def from_dict(state: Mapping) -> SurvivalModel:
        """Raises ValueError when the counts have another shape, or make a shift that is no number.

        Without the classes of copied or of remembered nodes they are complete but for those.
        """
        model = SurvivalModel.fresh(state["strength"], state["discount"])
        counts = torch.tensor(state["counts"], dtype=torch.float64)
        if counts.shape[:-1] == (3, BINS) and counts.shape[-1] in _FORMER_CLASSES:
            counts = torch.nn.functional.pad(counts, (0, CLASSES - counts.shape[-1]))
        if counts.shape != model.counts.shape:
            raise ValueError(f"counts must have the shape {tuple(model.counts.shape)}.")
        model = replace(model, counts=counts)
        if not bool(model._shifts.isfinite().all()):
            raise ValueError("counts and strength must be finite, and no hits more than trials.")
        return model

    @cached_property
    def _shifts(self) -> Tensor:
        """float64 [12, 28]: what a cell adds to the log-odds."""
        number, claimed, hits = self.counts
        yes, no = self.strength * _MIDDLES, self.strength * (1 - _MIDDLES)
        observed = (hits + yes).log() - (number - hits + no).log()
        return observed - (claimed + yes).log() + (number - claimed + no).log()


def endings(reached: Tensor, parents: Tensor) -> Tensor:
    """Probability that the walk of acceptance ends at each node: where a new block could help.

    Args:
        reached: float [N], survival of the nodes of a tree or of a pool.
        parents: int64 [N], indices into the nodes or -1.

    Returns:
        float [N]: the survival of a node less that of its children; over a tree they add up to 1.
    """
    onward = torch.zeros(len(reached) + 1, dtype=reached.dtype, device=reached.device)
    # -1 counts from the end: what hangs from no node is added to an entry of its own.
    onward.index_add_(0, parents % len(onward), reached)
    return (reached - onward[:-1]).clamp(min=0.0)


def trim(tree: DraftTree, survival: Tensor, size: int) -> DraftTree:
    """The tree of the `size` draft nodes most likely to be reached, in the same order.

    Args:
        tree: N draft nodes.
        survival: float [N+1], no node above its parent.
        size: draft nodes to keep; the tree itself where it has no more.
    """
    if size >= tree.num_draft:
        return tree
    # Stable, and parents come first: a child never gets in before a parent it ties with.
    order = survival[1:].sort(descending=True, stable=True).indices[:size] + 1
    kept = torch.nn.functional.pad(order.sort().values, (1, 0))
    places = torch.zeros_like(tree.parents).scatter(0, kept, torch.arange(size + 1).to(kept))
    fields = {name: value.index_select(0, kept) for name, value in vars(tree).items()}
    fields["parents"] = places[fields["parents"].clamp(min=0)]
    fields["parents"][0] = -1
    return DraftTree(**fields)


def _log_odds(log_probs: Tensor) -> Tensor:
    """log p / (1 - p), float32; within one's rounding of p = 1, as for it."""
    log_probs = log_probs.float().clamp(max=-1e-6)
    return log_probs - (-log_probs.expm1()).log()
