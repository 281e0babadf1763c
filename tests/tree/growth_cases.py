"""Random blocks, grown by the code and by the loops of the reference."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from specblock.tree.growth import (
    BlockCandidates,
    GrowthPolicy,
    NodePool,
    branching_factors,
    deduplicate,
    extend,
    first_pool,
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


def block_of(probabilities: list[float], classes: list[int], width: int = 10) -> BlockCandidates:
    """One block whose slots have these best probabilities; the rest is shared evenly."""
    rows = [[p] + [(1 - p) / width] * (width - 1) for p in probabilities]
    tokens = torch.arange(len(rows) * width).view(1, len(rows), width)
    log_probs = torch.tensor(rows).log().unsqueeze(0)
    return BlockCandidates(tokens, log_probs, torch.tensor([classes]))
