"""Rank buckets to branching factors, against the loops of the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tree.growth_cases import Case, block_of, cases

from specblock.tree.growth import (
    GrowthPolicy,
    branching_factors,
    first_pool,
    starters,
)
from tree import reference


@given(cases(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_branching_factors_equal_the_loops(case: Case, first_block: bool) -> None:
    block = case.block(case.generator(), 1 if first_block else 5)
    factors = branching_factors(block, case.policy, first_block=first_block)
    expected = reference.factors(block, case.policy, first_block)
    known = ~block.log_probs[:, :, 0].isnan()  # a slot without a best token has no factor
    assert factors.dtype == torch.int64
    assert torch.equal(factors[known], torch.tensor(expected)[known])


def test_branching_factors_of_the_defaults() -> None:
    policy = GrowthPolicy()
    for probability, expected in [(0.5, 10), (0.6, 8), (0.79, 8), (0.8, 5), (0.9, 3), (1.0, 3)]:
        # Log-probabilities whose exponential is not quite the threshold do not reach it.
        block = block_of([probability + 1e-6 if probability < 1 else 1.0], [2])
        assert branching_factors(block, policy, first_block=True).tolist() == [[expected]]
    below = block_of([0.6 - 1e-6, 0.85 - 1e-6, 0.95 - 1e-6], [0, 2, 2])
    assert branching_factors(below, policy, first_block=True).tolist() == [[10, 6, 3]]
    classes = block_of([0.5] * 4, [0, 1, 2, 3])
    assert branching_factors(classes, policy, first_block=False).tolist() == [[2, 4, 6, 4]]
    confident = block_of([0.951] * 4, [0, 1, 2, 3])
    assert branching_factors(confident, policy, first_block=False).tolist() == [[2] * 4]
    likely = block_of([0.851] * 4, [0, 1, 2, 3])
    assert branching_factors(likely, policy, first_block=False).tolist() == [[2, 3, 3, 3]]
    narrow = block_of([0.5] * 4, [0, 1, 2, 3], width=3)
    assert branching_factors(narrow, policy, first_block=True).tolist() == [[3, 3, 3, 3]]


def test_thresholds_are_reached_at_equality() -> None:
    # Powers of two are exact in float32, so is the exponential of 0.
    policy = GrowthPolicy(adaptive_first=((1.0, 1),), adaptive_rest=((1.0, 2),))
    block = block_of([1.0, 1.0], [2, 2])
    assert branching_factors(block, policy, first_block=True).tolist() == [[1, 2]]
    assert branching_factors(block, policy, first_block=False).tolist() == [[2, 2]]


def test_rank_head_switched_off() -> None:
    policy = GrowthPolicy(branching=(2, 4, 6, 0), rank_branching=False)
    block = block_of([0.5, 0.5, 0.96, 0.5], [3, 0, 0, 3])
    assert branching_factors(block, policy, first_block=True).tolist() == [[10, 4, 2, 4]]


@pytest.mark.parametrize(
    ("classes", "first", "later"),
    [
        ([0, 3, 0, 1], [10, 0, 0, 0], [2, 0, 0, 0]),  # the first miss is hopeless
        ([0, 1, 3, 1], [10, 4, 1, 4], [2, 4, 1, 4]),  # a later one only does not branch
        ([3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),  # overrides the rule of slot 0
        ([1, 1, 1, 3], [10, 4, 4, 1], [4, 4, 4, 1]),
        ([0, 0, 0, 3], [10, 2, 2, 0], [2, 2, 2, 0]),
    ],
)
def test_giving_up(classes: list[int], first: list[int], later: list[int]) -> None:
    policy = GrowthPolicy(branching=(2, 4, 6, 0))
    block = block_of([0.5] * 4, classes)
    assert branching_factors(block, policy, first_block=True).tolist() == [first]
    assert branching_factors(block, policy, first_block=False).tolist() == [later]
    pool = first_pool(block, policy)
    per_slot = [int((pool.valid & (pool.slots == slot)).sum()) for slot in range(4)]
    assert per_slot == [max(1, factor) for factor in first]
    leaves, valid = starters(pool, torch.tensor([first]), 40)
    found = sorted(pool.slots[leaves[valid]].tolist())
    hitch_hiker = [3] if first[3] == 1 else []
    assert found == sorted(
        [slot for slot in range(4) for _ in range(first[slot] if first[slot] > 1 else 0)]
        + hitch_hiker
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"branching": (2, 4, 6)}, "four rank classes"),
        ({"branching": (2, 0, 6, 4)}, "at least 1"),
        ({"branching": (2, 4, 6, -1)}, "at least 1"),
        ({"width": 0}, "width"),
        ({"adaptive_first": ((0.6, 8), (0.9, 3))}, "fall"),
        ({"adaptive_rest": ((0.6, 0),)}, "caps"),
    ],
)
def test_bad_policies_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrowthPolicy(**arguments)
