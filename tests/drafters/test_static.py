"""Drafting with static shapes, held to the dynamic forwards tree by tree."""

import pytest
import torch
from tests.tiny import make_drafter, make_target

from specblock.bench.costs.shapes import Shape, drafter_network
from specblock.drafters.base import FixedBudget
from specblock.drafters.registry import make_drafter as drafter_of
from specblock.drafters.static.drafter import SIZES, StaticDrafter
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.target.model import Target
from specblock.target.static import StaticTarget
from specblock.tree.sampling import SamplingParams

SHAPE = Shape(
    "llama", 8, 97, 64, 1e4,
    {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8,
    },
)  # fmt: skip


def eagle3():
    torch.manual_seed(2)
    return drafter_of(drafter_network(SHAPE, "eagle3"), depth=4, top_k=6, max_nodes=40)


DRAFTERS = {
    "four slots": make_drafter,
    "one slot": lambda: make_drafter(cached_slots=1),
    "with a sink": lambda: make_drafter(cached_slots=2, sink=True),
    "three blocks": lambda: make_drafter(blocks=3),
    "eagle3": eagle3,
}


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_trees_are_those_of_dynamic_forwards(name):
    """Many rounds of one text, of a few pairs and of more than a shape holds, then another text."""
    dynamic, static = DRAFTERS[name](), StaticDrafter(DRAFTERS[name]())
    generator = torch.Generator().manual_seed(0)
    width = len(dynamic.feature_layers) * 32
    for _ in range(2):
        for drafter in (dynamic, static):
            drafter.reset(200)
        for pairs in (32, 1, 3, 9, 1, SIZES[-1] + 2, 5):
            features = torch.randn(pairs, width, generator=generator)
            tokens = torch.randint(0, 97, (pairs,), generator=generator)
            trees = []
            for drafter in (dynamic, static):
                drafter.observe(features, tokens)
                trees.append(drafter.propose(int(tokens[-1]), FixedBudget(30, 28)))
            one, other = trees
            assert torch.equal(one.tokens, other.tokens)
            assert torch.equal(one.parents, other.parents)
            torch.testing.assert_close(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-4)
    assert len(static._shapes) >= 3
    assert not static.recorder.captures


@pytest.mark.parametrize("name", ["four slots", "one slot", "eagle3"])
def test_whole_rounds_with_static_shapes_say_the_same(name):
    model, found = make_target("llama"), []
    make = DRAFTERS[name]
    for drafter, kind in ((make(), Target), (StaticDrafter(make()), StaticTarget)):
        target = kind(model, drafter.feature_layers)
        for prompt in (list(range(3, 20)), [5, 6]):
            stats, said = GenerationStats(), []
            budget = FixedBudget(24, 8)
            for new in decode(target, drafter, budget, prompt, SamplingParams(), 30, stats):
                said += new
            found.append((said, stats.rounds, stats.drafted_nodes, stats.accepted_by_depth))
    assert found[:2] == found[2:]


def test_another_text_has_shapes_of_its_own():
    static = StaticDrafter(make_drafter())
    static.reset(64)
    other = static.another()
    other.reset(64)
    assert other._shapes is not static._shapes
    assert other.drafter._cache.data_ptr() != static.drafter._cache.data_ptr()
    assert other.max_nodes == static.max_nodes
