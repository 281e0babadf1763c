import json
import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.budget.cost_tables import CPU

from specblock.budget.costs import (
    CostTable,
    choose_leaves,
    choose_nodes,
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def random_costs(seed: int) -> CostTable:
    source = random.Random(seed)

    def table() -> dict[int, float]:
        counts = source.sample(range(1, 40), source.randint(1, 6))
        return {count: source.uniform(0.5, 3) for count in counts}

    return CostTable(table(), table(), table(), source.uniform(0, 1))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_seconds_never_fall_and_pass_through_what_was_measured(seed):
    costs = random_costs(seed)
    for table, of in (
        (costs.target, costs.target_seconds),
        (costs.draft_first, costs.draft_first_seconds),
        (costs.draft_next, costs.draft_next_seconds),
    ):
        seconds = [of(count) for count in range(1, 90)]
        assert all(a <= b + 1e-12 for a, b in pairwise(seconds))
        for count in table:
            least = min(value for other, value in table.items() if other >= count)
            assert of(count) == pytest.approx(least)
        assert of(0) == 0


def test_lines_between_and_beyond():
    costs = CostTable({1: 1.0, 3: 2.0, 5: 1.5, 9: 4.0})
    got = [costs.target_seconds(rows) for rows in (1, 2, 3, 4, 5, 7, 9, 11)]
    assert got == [1.0, 1.25, 1.5, 1.5, 1.5, 2.75, 4.0, 5.25]
    assert CostTable({4: 2.0}).target_seconds(1) == CostTable({4: 2.0}).target_seconds(9) == 2.0
    assert (costs.draft_first_seconds(3), costs.draft_next_seconds(3)) == (0.0, 0.0)
    assert CPU.round_seconds(4, (8, 1), 15) == pytest.approx(7.2 + 10.6 + 6.4 + 59 + 3.3)
    assert CPU.plain_rate == 1 / 36


def test_tables_survive_json_and_bad_ones_are_refused():
    assert CostTable.from_dict(json.loads(json.dumps(CPU.to_dict()))) == CPU
    assert CPU.target_seconds(10) > 0
    assert CostTable.from_dict(CPU.to_dict()) == CPU
    for wrong in ({}, {1: 0.0}, {0: 1.0}, {1: -1.0}, {1: math.nan}, {1: math.inf}):
        with pytest.raises(ValueError, match="target"):
            CostTable(wrong)
    with pytest.raises(ValueError, match="draft_next"):
        CostTable({1: 1.0}, draft_next={1: math.nan})
    with pytest.raises(ValueError, match="overhead"):
        CostTable({1: 1.0}, overhead=-1.0)


@given(seed=st.integers(0, 10**6), count=st.integers(0, 60), rate=st.floats(0.01, 5))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_choices_equal_brute_force(seed, count, rate):
    costs, source = random_costs(seed), random.Random(seed)
    survival = sorted((source.random() ** 3 for _ in range(count)), reverse=True)

    def value(nodes: int) -> float:
        return 1 + sum(survival[:nodes]) - rate * costs.target_seconds(nodes + 1)

    def speed(nodes: int) -> float:
        seconds = 0.7 + costs.overhead + costs.target_seconds(nodes + 1)
        return (1 + sum(survival[:nodes])) / seconds

    def leaf_value(leaves: int) -> float:
        return 1.3 * sum(survival[:leaves]) - rate * costs.draft_next_seconds(leaves)

    tensor, every = torch.tensor(survival, dtype=torch.float64), range(count + 1)
    chosen = choose_nodes(tensor, costs, 0.7, rate)
    assert value(chosen) == pytest.approx(max(map(value, every)))
    assert choose_nodes(tensor, costs, 99.0, rate) == chosen
    assert speed(choose_nodes(tensor, costs, 0.7, None)) == pytest.approx(max(map(speed, every)))
    leaves = choose_leaves(tensor, 1.3, costs, rate, 20)
    assert leaves <= 20
    best = max(map(leaf_value, range(min(count, 20) + 1)))
    assert leaf_value(leaves) == pytest.approx(best)


def test_free_rows_take_everything_and_dear_ones_only_the_certain():
    survival = torch.tensor([0.999, 0.9, 0.5, 0.1, 0.01])
    free = CostTable({1: 1.0, 100: 1.0})
    assert choose_nodes(survival, free, 0.0, free.plain_rate) == 5
    assert choose_leaves(survival, 1.0, free, free.plain_rate, 3) == 3
    dear = CostTable({1: 1.0, 2: 2.0}, draft_next={1: 0.95, 2: 1.9})
    assert choose_nodes(survival, dear, 0.0, dear.plain_rate) == 0
    assert choose_leaves(survival, 1.0, dear, dear.plain_rate, 5) == 1
    almost = CostTable({1: 1.0, 2: 1.95, 3: 2.9})
    assert choose_nodes(survival, almost, 0.0, almost.plain_rate) == 1
    assert choose_nodes(torch.zeros(0), free, 0.0, 1.0) == 0
    assert choose_leaves(torch.zeros(0), 1.0, free, 1.0, 4) == 0
    assert choose_leaves(survival, 1.0, free, 1.0, 0) == 0


def test_pricing_time_beats_the_best_ratio_of_every_round():
    """Why Dinkelbach: with good and bad rounds mixed, the choice by price is the faster one."""
    costs = CostTable({1: 1.0, 2: 1.2, 30: 6.8})
    rounds = [torch.full((30,), 0.9).cumprod(0), torch.full((30,), 0.3).cumprod(0)]

    def speed(rate: float | None) -> float:
        chosen = [choose_nodes(survival, costs, 0.5, rate) for survival in rounds]
        pairs = list(zip(chosen, rounds, strict=True))
        tokens = sum(1 + float(survival[:nodes].sum()) for nodes, survival in pairs)
        return tokens / sum(0.5 + costs.target_seconds(nodes + 1) for nodes in chosen)

    rate, history = 1.0, []
    for _ in range(10):
        rate = speed(rate)
        history.append(rate)
    assert history == sorted(history)
    assert history[-1] == pytest.approx(history[-2])
    assert history[-1] > speed(None) * 1.01


def test_nodes_within_is_the_most_that_the_seconds_pay_for():
    for seconds in (0.0, 39.9, 40.0, 60.0, 61.0, 66.0, 94.9, 200.0, 1e9):
        wanted = sum(CPU.target_seconds(nodes + 1) <= seconds for nodes in range(1, 129))
        assert CPU.nodes_within(seconds) == wanted
