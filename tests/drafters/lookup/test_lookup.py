"""Lookup: the match against brute force, the tree's invariants, and the same output."""

import itertools

import numpy as np
import pytest
import torch
from tests.tiny import make_target

from specblock.budget.costs import CostTable
from specblock.drafters.base import BudgetController, FixedBudget
from specblock.drafters.lookup.match import best, continuation, longest_match, merge
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.engine.machine.measure import measure_costs
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.target.model import Target
from specblock.tree.sampling import SamplingParams
from specblock.tree.source import Source


def brute_force(tokens, longest):
    for length in range(min(longest, len(tokens) - 1), 0, -1):
        suffix = tokens[len(tokens) - length :]
        ends = [e for e in range(length, len(tokens)) if tokens[e - length : e] == suffix]
        if ends:
            return length, ends[::-1]
    return 0, []


def test_the_match_is_brute_forces():
    short = [list(text) for n in range(8) for text in itertools.product(range(2), repeat=n)]
    rng = np.random.default_rng(0)
    for tokens in short + [rng.integers(0, 3, 40).tolist() for _ in range(100)]:
        for longest in (0, 1, 3, 16):
            length, ends = longest_match(np.array(tokens, dtype=np.int64), longest)
            assert (length, ends.tolist()) == brute_force(tokens, longest)


def test_what_followed_goes_on_with_itself():
    text = np.array([5, 1, 2, 3, 1, 2, 3])
    length, ends = longest_match(text, 16)
    assert (length, ends.tolist()) == (3, [4])
    assert continuation(text, 4, 7) == [1, 2, 3, 1, 2, 3, 1]
    assert continuation(text, 1, 3) == [1, 2, 3]
    assert continuation(np.array([4, 4]), 1, 3) == [4, 4, 4]


def test_continuations_share_their_beginning():
    nodes = merge([[1, 2], [1, 3], [1, 2]], 3)
    assert [node.token for node in nodes] == [-1, 1, 2, 3]
    assert [node.parent for node in nodes] == [-1, 0, 1, 1]
    probabilities = [np.exp(node.log_prob) for node in nodes[1:]]
    assert probabilities == pytest.approx([3 / 4, 4 / 5 * 2 / 3, 4 / 5 / 3])
    assert [node.bucket for node in nodes[1:]] == [2, 1, 1]
    kept = best(nodes, 2)
    assert [(node.token, node.parent) for node in kept] == [(-1, -1), (1, 0), (2, 1)]


def propose(tokens, budget=None, **options):
    drafter = LookupDrafter(**options)
    drafter.reset(4)  # smaller than the text: it has to grow
    drafter.prefill(torch.zeros(len(tokens), 0), torch.tensor(tokens))
    return drafter.propose(tokens[-1], budget or FixedBudget())


@pytest.mark.parametrize("seed", range(20))
def test_every_tree_is_one(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 5, rng.integers(1, 30)).tolist()
    max_nodes = int(rng.integers(1, 10))
    tree = propose(tokens, continuations=int(rng.integers(1, 6)), depth=4, max_nodes=max_nodes)
    tree.validate()
    assert tree.num_draft <= max_nodes
    assert int(tree.tokens[0]) == tokens[-1]


def test_one_continuation_is_a_chain():
    tree = propose([1, 2, 3, 4, 1, 2, 9, 1, 2], continuations=1, depth=3)
    assert tree.tokens.tolist() == [2, 9, 1, 2]
    assert tree.parents.tolist() == [-1, 0, 1, 2]
    both = propose([1, 2, 3, 4, 1, 2, 9, 1, 2], continuations=2, depth=1)
    assert both.tokens.tolist() == [2, 9, 3]


def test_nothing_known_drafts_nothing():
    assert len(propose([1, 2, 3])) == 1
    assert len(propose([1, 2, 3, 1], shortest=2)) == 1
    with pytest.raises(ValueError, match="at least 1"):
        LookupDrafter(depth=0)


def test_copies_have_classes_of_their_own():
    tree = propose([1, 2, 3, 4, 1, 2], depth=8)
    assert tree.buckets.tolist() == [0, 2, 2, 1, 1, 1, 1, 0, 0]  # matches of 2, 3, 4, ...
    assert tree.sources.tolist() == [Source.NETWORK, *[Source.COPIED] * 8]


def test_the_budget_cuts_the_tree():
    assert propose([1, 2, 3, 4, 1, 2], FixedBudget(2)).num_draft == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("measured", [False, True])
def test_the_output_is_plain_decodings(temperature, measured):
    target = Target(make_target("llama"), ())
    params = SamplingParams(temperature=temperature, seed=4)
    costs = CostTable({1: 1.0, 64: 1.1}, {1: 0.001})
    budget = BudgetController(costs) if measured else FixedBudget()
    prompt = [4, 9, 11, 30, 4, 9, 11, 30, 4]

    def text(drafter, stats):
        rounds = decode(target, drafter, budget, prompt, params, 60, stats)
        return [token for tokens in rounds for token in tokens]

    plain = text(None, GenerationStats())
    stats = GenerationStats()
    assert text(LookupDrafter(), stats) == plain
    assert stats.drafted_nodes > 0


def test_its_costs_are_measured_like_any_drafters():
    table = measure_costs(
        Target(make_target("llama", num_hidden_layers=2), ()), LookupDrafter(), lambda step: None
    )
    assert table.draft_first
    assert table.draft_first_seconds(1) < table.target_seconds(1)
    assert not table.draft_next
