"""Tree growth against the loops of ``reference`` on random blocks, and by hand at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tree.growth_cases import (
    ROOT_TOKEN,
    Case,
    assert_same_nodes,
    block_of,
    cases,
    grow_both,
)
from torch import Tensor

from specblock.tree import growth
from specblock.tree.draft_tree import DraftTree
from specblock.tree.growth import (
    BlockCandidates,
    GrowthPolicy,
    branching_factors,
    deduplicate,
    extend,
    first_pool,
    prune,
    starters,
)
from tree import reference


@given(cases())
@settings(max_examples=150, deadline=None)
def test_pool_equals_the_loops(case: Case) -> None:
    pool, top = grow_both(case)
    assert_same_nodes(pool, top)


@given(cases())
@settings(max_examples=250, deadline=None)
def test_deduplicate_equals_merging_level_by_level(case: Case) -> None:
    pool, top = grow_both(case)
    paths = {node.path for node in reference.walk(top)}
    best: dict[tuple[int, ...], float] = {}
    for node in reference.walk(top):
        best[node.path] = max(best.get(node.path, -math.inf), float(node.score))
    merged = deduplicate(pool)
    reference.deduplicate(top)
    assert_same_nodes(merged, top)
    # No path is lost, none is there twice, and none scores less than its best proposal did.
    after = [node.path for node in reference.walk(top)]
    assert len(after) == len(set(after))
    assert set(after) == paths
    assert all(node.score >= best[node.path] - 1e-4 for node in reference.walk(top))
    # Merging is final.
    again = deduplicate(merged)
    assert torch.equal(again.scores, merged.scores)
    assert torch.equal(again.parents[again.valid], merged.parents[merged.valid])


@given(cases(), st.integers(0, 40))
@settings(max_examples=250, deadline=None)
def test_prune_equals_the_greedy_frontier(case: Case, budget: int) -> None:
    pool, top = grow_both(case)
    tree = prune(deduplicate(pool), torch.tensor(ROOT_TOKEN), budget)
    reference.deduplicate(top)
    expected = reference.prune(top, budget)
    tree.validate()
    assert int(tree.tokens[0]) == ROOT_TOKEN
    assert tree.tokens[1:].tolist() == [node.token for node in expected]
    assert tree.scores[1:].tolist() == [float(node.score) for node in expected]
    assert tree.log_probs[1:].tolist() == [float(node.log_prob) for node in expected]
    assert tree.buckets[1:].tolist() == [node.rank_class for node in expected]
    place = {-1: 0} | {node.index: place for place, node in enumerate(expected, start=1)}
    assert tree.parents[1:].tolist() == [place[n.parent.index] for n in expected if n.parent]
    assert reference.token_paths(tree) == {node.path for node in expected}
    assert tree.depths.tolist() == sorted(tree.depths.tolist())


@given(cases())
@settings(max_examples=60, deadline=None)
def test_prune_without_merging_is_still_closed(case: Case) -> None:
    pool, _ = grow_both(case)
    budget = int(pool.valid.sum()) // 2
    tree = prune(pool, torch.tensor(ROOT_TOKEN), budget)
    assert tree.num_draft == budget
    for node in range(1, len(tree)):
        parent = int(tree.parents[node])
        assert 0 <= parent < node
        assert int(tree.depths[node]) == int(tree.depths[parent]) + 1


def test_last_greedy_node_hitch_hikes() -> None:
    policy = GrowthPolicy(branching=(1, 4, 6, 4), adaptive_first=((0.0, 1),))
    block = block_of([0.5, 0.5, 0.5], [0, 0, 0])
    factors = branching_factors(block, policy, first_block=True)
    assert factors.tolist() == [[1, 1, 1]]
    pool = first_pool(block, policy)
    leaves, valid = starters(pool, factors, 24)
    assert leaves[valid].tolist() == [20]
    assert pool.depths[20] == 3


def test_colliding_children_of_a_loser_and_its_winner() -> None:
    """Both chains spell 1 2 and go on differently: the merged node has the children of both."""
    policy = GrowthPolicy(branching=(2, 2, 2, 2), width=2, adaptive_first=(), adaptive_rest=())
    first = BlockCandidates(
        torch.tensor([[[1, 9], [2, 8]]]),
        torch.tensor([[[-0.5, -2.0], [-1.0, -3.0]]]),
        torch.zeros(1, 2, dtype=torch.int64),
    )
    pool = first_pool(first, policy)
    later = BlockCandidates(
        torch.tensor([[[2, 7], [4, 5]], [[4, 6], [3, 0]]]),
        torch.tensor([[[-0.25, -4.0], [-0.5, -1.0]], [[-0.75, -1.5], [-0.125, -2.0]]]),
        torch.ones(2, 2, dtype=torch.int64),
    )
    # One block starts at the node 1, the other at the node 1 2.
    pool = extend(pool, torch.tensor([0, 2]), torch.tensor([True, True]), later, policy)
    tree = prune(deduplicate(pool), torch.tensor(ROOT_TOKEN), 60)
    tree.validate()
    scores = {
        tuple(int(tree.tokens[i]) for i in reversed(reference.ancestors(tree, node)[:-1])): float(
            tree.scores[node]
        )
        for node in range(1, len(tree))
    }
    assert scores == {
        (1,): -0.5,
        (9,): -2.0,
        (1, 2): -0.75,  # block 2's own estimate of 2 after 1 beats block 1's
        (1, 8): -3.5,
        (1, 7): -4.5,
        (1, 2, 4): -1.25,
        (1, 2, 5): -1.75,
        (1, 2, 6): -2.25,  # the loser's child: from the winner's score on
        (1, 2, 4, 3): -1.375,
        (1, 2, 4, 0): -3.25,
    }


def test_rounding_above_zero_does_not_break_closure() -> None:
    policy = GrowthPolicy(width=2, adaptive_first=())
    block = BlockCandidates(
        torch.tensor([[[1, 2], [3, 4], [5, 6]]]),
        torch.tensor([[[-1e-3, -9.0], [1e-7, -9.0], [1e-7, -9.0]]]),
        torch.zeros(1, 3, dtype=torch.int64),
    )
    for budget in range(1, 7):
        prune(first_pool(block, policy), torch.tensor(ROOT_TOKEN), budget).validate()


def test_budget_edges() -> None:
    pool = first_pool(block_of([0.5] * 4, [0] * 4), GrowthPolicy())
    assert prune(pool, torch.tensor(9), 0).tokens.tolist() == [9]
    assert prune(pool, torch.tensor([9]), 1).num_draft == 1
    valid = int(pool.valid.sum())
    assert prune(pool, torch.tensor(9), valid).num_draft == valid
    assert prune(pool, torch.tensor(9), 10_000).num_draft == valid
    with pytest.raises(ValueError, match="budget"):
        prune(pool, torch.tensor(9), -1)


def test_bad_arguments_are_named() -> None:
    block = block_of([0.5] * 2, [0, 0])
    pool = first_pool(block, GrowthPolicy())
    two = reference.random_block(torch.Generator().manual_seed(0), 2, 2, 10, 20, "smooth")
    with pytest.raises(ValueError, match="one block, not 2"):
        first_pool(two, GrowthPolicy())
    with pytest.raises(ValueError, match="1 leaves"):
        extend(pool, torch.tensor([0]), torch.tensor([True]), two, GrowthPolicy())
    with pytest.raises(ValueError, match="factors must be"):
        starters(pool, torch.ones(2, 2, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match=r"\[B, K, W\]"):
        BlockCandidates(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="shaped like tokens"):
        BlockCandidates(two.tokens, two.log_probs[:, :, :3], two.rank_classes)


def many_blocks(device: str) -> list[BlockCandidates]:
    generator = torch.Generator().manual_seed(3)  # a first block that does not give up at once
    blocks = [reference.random_block(generator, n, 4, 10, 30, "smooth") for n in (1, 24, 24)]
    return [BlockCandidates(*(field.to(device) for field in vars(b).values())) for b in blocks]


def three_calls(blocks: list[BlockCandidates], root_token: Tensor) -> tuple[DraftTree, Tensor]:
    """A round of three drafter calls up to the trimming, which has to wait for the device."""
    policy = GrowthPolicy(branching=(2, 4, 6, 0))
    factors = branching_factors(blocks[0], policy, first_block=True)
    pool = first_pool(blocks[0], policy, factors)
    for block in blocks[1:]:
        leaves, valid = starters(pool, factors, block.tokens.shape[0])
        factors = branching_factors(block, policy, first_block=False)
        pool = deduplicate(extend(pool, leaves, valid, block, policy, factors))
    tree, _, count = growth._best(pool, root_token, 60)
    return tree, count


def test_a_round_of_full_size() -> None:
    tree, count = three_calls(many_blocks("cpu"), torch.tensor(ROOT_TOKEN))
    tree.validate()
    assert int(count) == tree.num_draft == 60
    assert int(tree.depths.max()) > 4


def test_growth_reads_nothing_to_the_host() -> None:
    # Tensors without data: whatever asks for a value raises.
    tree, _ = three_calls(many_blocks("meta"), torch.tensor(ROOT_TOKEN, device="meta"))
    assert tree.tokens.shape == tree.parents.shape == tree.scores.shape == (61,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_growth_on_a_gpu_is_the_same_and_never_waits() -> None:
    expected, count = three_calls(many_blocks("cpu"), torch.tensor(ROOT_TOKEN))
    blocks, root_token = many_blocks("cuda"), torch.tensor(ROOT_TOKEN, device="cuda")
    three_calls(blocks, root_token)  # makes the cached constants
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tree, found = three_calls(blocks, root_token)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert int(found) == int(count)
    for name, field in vars(tree).items():
        assert torch.equal(field.cpu(), getattr(expected, name)), name
