"""How many alternatives every slot of a drafted block keeps: the rank policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

GIVE_UP_CLASS = 3  # of the rank head: the target's token is not among the first ten


@dataclass(frozen=True, eq=False)
class BlockCandidates:
    """What a drafter hands over for B blocks: the W best tokens of each of the K slots.

    Slot k of a block continues its greedy chain: the candidates of slot k follow the first
    candidates of slots 0..k-1. A log-probability of -inf (or NaN) marks an absent candidate.

    Attributes:
        tokens: int64 [B, K, W], target-vocabulary ids, best first, distinct within a slot.
        log_probs: float32 [B, K, W], log-softmax over the draft vocabulary at temperature 1.
        rank_classes: int64 [B, K], the rank head's bucket of every slot
            (0: rank 1, 1: ranks 2-4, 2: ranks 5-10, 3: beyond).
    """

    tokens: Tensor
    log_probs: Tensor
    rank_classes: Tensor

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        if len(shape) != 3 or 0 in shape[1:]:
            raise ValueError(f"tokens must be [B, K, W] with K, W >= 1, not {tuple(shape)}")
        if self.log_probs.shape != shape or self.rank_classes.shape != shape[:2]:
            raise ValueError("log_probs must be shaped like tokens, rank_classes [B, K]")

    def split(self, counts: Sequence[int]) -> list[BlockCandidates]:
        """The first so many blocks, the next so many, and so on."""
        parts = zip(*(field.split(list(counts)) for field in vars(self).values()), strict=True)
        return [BlockCandidates(*fields) for fields in parts]


@dataclass(frozen=True)
class GrowthPolicy:
    """Rank bucket -> branching factor, with the rules that narrow a confident slot.

    The defaults are the table that SpecBlock (arXiv 2605.07243) ships. A branching factor counts
    the greedy token: 1 means no alternatives. Adaptive rules are (threshold, cap) pairs by falling
    threshold; the first whose threshold the slot's best probability reaches applies.

    Attributes:
        branching: branching factor by rank class. 0 for the last class turns on giving up: where
            the first slot of a block whose class is not 0 has that class, neither it nor any later
            slot branches or starts a block.
        width: branching factor of slot 0 of the first block unless ``adaptive_first`` lowers it.
        adaptive_first: caps on ``width``; they replace the rank class for that slot.
        adaptive_rest: caps on the rank class's factor, for every other slot of every block.
        rank_branching: False ignores the rank head (ablation): every class takes
            ``branching[1]`` and nothing gives up. The adaptive rules stay; () turns them off.

    Raises:
        ValueError: for factors, thresholds or caps outside their range.
    """

    branching: tuple[int, int, int, int] = (2, 4, 6, 4)
    width: int = 10
    adaptive_first: tuple[tuple[float, int], ...] = ((0.9, 3), (0.8, 5), (0.6, 8))
    adaptive_rest: tuple[tuple[float, int], ...] = ((0.95, 2), (0.85, 3))
    rank_branching: bool = True

    def __post_init__(self) -> None:
        if len(self.branching) != GIVE_UP_CLASS + 1:
            raise ValueError("branching needs one factor for each of the four rank classes")
        if min(self.branching[:GIVE_UP_CLASS]) < 1 or self.branching[GIVE_UP_CLASS] < 0:
            raise ValueError("branching factors must be at least 1 (the last may be 0: give up)")
        if self.width < 1:
            raise ValueError("width must be at least 1")
        for rules in (self.adaptive_first, self.adaptive_rest):
            thresholds = [threshold for threshold, _ in rules]
            if thresholds != sorted(set(thresholds), reverse=True):
                raise ValueError("adaptive thresholds must fall from rule to rule")
            if any(cap < 1 for _, cap in rules):
                raise ValueError("adaptive caps must be at least 1")

    @property
    def gives_up(self) -> bool:
        """Whether a block may give up (see ``branching``)."""
        return self.rank_branching and self.branching[GIVE_UP_CLASS] == 0

    def max_factor(self, *, first_block: bool) -> int:
        """The largest branching factor that any slot of such a block can get."""
        rest = max(self.branching) if self.rank_branching else self.branching[1]
        return max(rest, self.width) if first_block else rest


def branching_factors(block: BlockCandidates, policy: GrowthPolicy, *, first_block: bool) -> Tensor:
    """How many candidates every slot keeps, the greedy one counted.

    Args:
        block: candidates of B blocks.
        policy: the rank policy.
        first_block: True for the block that starts at the root; its slot 0 has its own rule.

    Returns:
        int64 [B, K], each at least 1 and at most W; 0 where the block has given up: such a slot
        keeps its greedy token too, but no block may start there. Giving up overrides the rule of
        slot 0 as well. No host synchronisation.
    """
    _, slots, width = block.tokens.shape
    classes = block.rank_classes
    bounds, table, offsets = _tables(policy, first_block, slots, width, classes.device)
    # Buckets of the best probability: bounds[j-1] <= p < bounds[j] gives j.
    bucket = torch.bucketize(block.log_probs[:, :, 0].float().exp(), bounds, right=True)
    index = classes * (bounds.shape[0] + 1) + offsets + bucket
    factors = table.index_select(0, index.reshape(-1)).reshape(index.shape)
    if policy.gives_up:
        first_miss = (classes != 0).cumsum(1) == 1
        hopeless = ((classes == GIVE_UP_CLASS) & first_miss).cumsum(1) > 0
        factors = factors.masked_fill(hopeless, 0)
    return factors


@lru_cache(maxsize=64)
def _tables(
    policy: GrowthPolicy, first_block: bool, slots: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Both rules as one lookup: bounds [T], factors [2 * 4 * (T+1)], offset of each slot [K].

    The factor of (rule, class, bucket) lies at ((rule * 4) + class) * (T+1) + bucket.
    """
    rules = policy.adaptive_first + policy.adaptive_rest
    bounds = sorted({threshold for threshold, _ in rules})
    # The lower end of each bucket stands for all of it: a threshold is always a lower end.
    ends = [float("-inf"), *bounds]
    bases = policy.branching if policy.rank_branching else policy.branching[1:2] * 4
    rest = [min(base, _cap(policy.adaptive_rest, end)) for base in bases for end in ends]
    first = [min(policy.width, _cap(policy.adaptive_first, end)) for _ in bases for end in ends]
    factors = [int(min(width, max(1, factor))) for factor in rest + first]
    offsets = [0] * slots
    if first_block:
        offsets[0] = len(rest)
    return (
        torch.tensor(bounds, dtype=torch.float32, device=device),
        torch.tensor(factors, dtype=torch.int64, device=device),
        torch.tensor(offsets, dtype=torch.int64, device=device),
    )


def _cap(rules: tuple[tuple[float, int], ...], probability: float) -> float:
    """The cap of the first rule whose threshold ``probability`` reaches; no rule, no cap."""
    for threshold, cap in rules:
        if probability >= threshold:
            return cap
    return float("inf")
