"""Tree growth against the loops of ``reference`` on random blocks, and by hand at the edges."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specblock.tree import growth
from specblock.tree.draft_tree import DraftTree
from specblock.tree.growth import (
    BlockCandidates,
    GrowthPolicy,
    NodePool,
    branching_factors,
    deduplicate,
    extend,
    first_pool,
    prune,
    starters,
)
from tree import reference

ROOT_TOKEN = 3


@dataclass
class Case:
    """One random round: its settings and the generator of its blocks."""

    policy: GrowthPolicy
    slots: int
    width: int
    vocabulary: int
    limit: int
    calls: int
    kind: str
    seed: int

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def block(self, generator: torch.Generator, rows: int) -> BlockCandidates:
        return reference.random_block(
            generator, rows, self.slots, self.width, self.vocabulary, self.kind
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    width = draw(st.integers(1, 5))
    factor = st.integers(1, 5)
    policy = GrowthPolicy(
        branching=(draw(factor), draw(factor), draw(factor), draw(st.integers(0, 4))),
        width=draw(st.integers(1, 6)),
        adaptive_first=draw(st.sampled_from([(), ((0.9, 1), (0.5, 3))])),
        adaptive_rest=draw(st.sampled_from([(), ((0.95, 1), (0.5, 2))])),
        rank_branching=draw(st.booleans()),
    )
    return Case(
        policy=policy,
        slots=draw(st.integers(1, 4)),
        width=width,
        vocabulary=width + draw(st.integers(0, 3)),
        limit=draw(st.integers(0, 6)),
        calls=draw(st.integers(1, 3)),
        kind=draw(st.sampled_from(["smooth", "ties", "holes"])),
        seed=draw(st.integers(0, 2**32)),
    )


def grow_both(case: Case) -> tuple[NodePool, reference.Node]:
    """The same blocks through the tensor code and the loops, merged before a third call."""
    generator = case.generator()
    block = case.block(generator, 1)
    factors = branching_factors(block, case.policy, first_block=True)
    pool = first_pool(block, case.policy)
    top = reference.root(ROOT_TOKEN)
    kept = case.policy.max_factor(first_block=True)
    newest = reference.grow_block(top, block, 0, factors[0].tolist(), kept, 0, 0)
    number, first_number = 1, 0
    for call in range(1, case.calls):
        if call == 2:
            pool = deduplicate(pool)
            reference.deduplicate(top)
            alive = set(reference.walk(top))
            newest = [node for node in newest if node in alive]
        leaves, valid = starters(pool, factors, case.limit)
        rows = factors.tolist()
        by_index = {node.index: node for node in newest}
        check_starters(leaves, valid, newest, rows, first_number, case.limit)
        block = case.block(generator, len(leaves))
        factors = branching_factors(block, case.policy, first_block=False)
        offset, first_number = len(pool), number
        pool = extend(pool, leaves, valid, block, case.policy)
        kept = case.policy.max_factor(first_block=False)
        newest = []
        for row, (leaf, ok) in enumerate(zip(leaves.tolist(), valid.tolist(), strict=True)):
            if ok:
                newest += reference.grow_block(
                    by_index[leaf], block, row, factors[row].tolist(), kept, offset, number
                )
            number += 1
    return pool, top


def check_starters(
    leaves: Tensor,
    valid: Tensor,
    newest: list[reference.Node],
    rows: list[list[int]],
    first_number: int,
    limit: int,
) -> None:
    able = [n for n in newest if reference.may_start(n, rows[n.block - first_number])]
    chosen = leaves[: int(valid.sum())].tolist()
    assert valid.tolist() == sorted(valid.tolist(), reverse=True)
    assert len(chosen) == len(set(chosen)) == min(limit, len(able))
    scores = {node.index: float(node.score) for node in able}
    best = sorted(scores.values(), reverse=True)[: len(chosen)]
    assert [scores[index] for index in chosen] == best


def assert_same_nodes(pool: NodePool, top: reference.Node) -> None:
    """Every valid node of the pool is the reference's in all fields, and there is no other."""
    nodes = {node.index: node for node in reference.walk(top)}
    assert set(pool.valid.nonzero().flatten().tolist()) == set(nodes)
    slots, blocks, greedy = pool.slots, pool.blocks, pool.greedy
    for index, node in nodes.items():
        assert node.parent is not None
        assert int(pool.parents[index]) == node.parent.index
        assert int(pool.tokens[index]) == node.token
        assert int(pool.depths[index]) == node.depth
        assert float(pool.scores[index]) == float(node.score)
        assert float(pool.log_probs[index]) == float(node.log_prob)
        assert int(pool.rank_classes[index]) == node.rank_class
        assert int(slots[index]) == node.slot
        assert int(blocks[index]) == node.block
        assert bool(greedy[index]) == node.greedy
    assert (pool.scores[~pool.valid] == -torch.inf).all()


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
    assert tree.rank_classes[1:].tolist() == [node.rank_class for node in expected]
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


def block_of(probabilities: list[float], classes: list[int], width: int = 10) -> BlockCandidates:
    """One block whose slots have these best probabilities; the rest is shared evenly."""
    rows = [[p] + [(1 - p) / width] * (width - 1) for p in probabilities]
    tokens = torch.arange(len(rows) * width).view(1, len(rows), width)
    log_probs = torch.tensor(rows).log().unsqueeze(0)
    return BlockCandidates(tokens, log_probs, torch.tensor([classes]))


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
    return growth._best(pool, root_token, 60)


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
