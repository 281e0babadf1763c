"""The nodes of many texts chosen together: the best of all choices, and nobody pays for others."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.budget.copied import chain
from tests.budget.cost_tables import CPU, GPU, STEEP

from specblock.budget.allowance import Account
from specblock.budget.controller import BudgetController
from specblock.budget.costs import CostTable
from specblock.budget.sharing import share


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def falling(source: random.Random, most: int) -> torch.Tensor:
    claims = [source.random() for _ in range(source.randint(0, most))]
    return torch.tensor(claims, dtype=torch.float64).sort(descending=True).values


@given(seed=st.integers(0, 10**6))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_no_other_choice_is_worth_more(seed):
    source = random.Random(seed)
    counts = (1, 2, 4, 8, 16)
    costs = CostTable(dict(zip(counts, sorted(source.uniform(1, 9) for _ in counts), strict=True)))
    reached = [falling(source, 3) for _ in range(3)]
    rows, rate = source.randint(3, 6), source.uniform(0, 2)

    def value(nodes: tuple[int, ...]) -> float:
        tokens = sum(float(own[:n].sum()) for own, n in zip(reached, nodes, strict=True))
        return tokens - rate * costs.target_seconds(rows + sum(nodes))

    every = itertools.product(*(range(len(own) + 1) for own in reached))
    best = max(map(value, every))
    assert value(tuple(share(reached, costs, rows, rate))) == pytest.approx(best)


def test_a_text_with_good_drafts_gets_more_and_a_dear_row_none():
    good, poor = torch.full((6,), 0.9).cumprod(0), torch.full((6,), 0.3).cumprod(0)
    mine, theirs = share([good, poor], CPU, 2, rate=2 / CPU.target_seconds(2))
    assert mine > theirs
    assert share([good, poor], STEEP, 2, rate=1.0) == [0, 0]
    assert min(share([good, poor], GPU, 2, rate=1 / 40)) >= 5
    assert share([torch.zeros(0)] * 2, CPU, 2, rate=1.0) == [0, 0]


def test_a_tree_must_be_worth_what_it_takes_beyond_its_rows():
    good, poor = torch.full((6,), 0.9).cumprod(0), torch.tensor([0.2])
    costs = CostTable({1: 20.0, 16: 21.0}, overhead=8.0)
    free = CostTable({1: 20.0, 16: 21.0})
    assert share([good, poor], free, 2, rate=0.05) == [6, 1]
    assert share([good, poor], costs, 2, rate=0.05) == [6, 0]
    assert share([poor, poor], costs, 2, rate=0.05) == [0, 0]


def test_alone_a_text_is_charged_what_its_round_takes():
    control = BudgetController(CPU)
    control.account.left = before = 5.0
    assert control.speculate()
    nodes = control.nodes(torch.full((8,), 0.9).cumprod(0))
    control.update(torch.zeros(nodes + 1), torch.zeros(nodes + 1).long(), [[]])
    steps = CPU.round_seconds(1, (), nodes) * CPU.plain_rate
    assert before - control.account.left == pytest.approx(steps - 1.0 - Account.ALLOWANCE)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_in_company_no_text_costs_more_than_its_account(seed):
    """Whatever is claimed and accepted, where every row costs the same: by the table all steps
    together take no longer than plain ones and what the texts are granted."""
    source = random.Random(seed)
    texts, rows = source.randint(2, 6), source.uniform(0.5, 3)
    costs = CostTable(
        {1: rows, 96: rows + source.uniform(0, 30)}, {1: source.random(), 96: 2.0},
        {1: source.random(), 96: 2.0},
        *(source.uniform(0, most) for most in (0.3, 0.2, 0.1)),
    )  # fmt: skip
    plain_share = costs.target_seconds(texts, texts) / texts
    first = BudgetController(costs)
    controls = [first, *(first.another() for _ in range(texts - 1))]
    steps = [0.0] * texts
    for control in controls:
        control.begin()
    for _ in range(30):
        for control in controls:
            control.in_company(texts, texts)
        asked = [c.speculate(chain(0.6) if source.random() < 0.4 else None) for c in controls]
        together = sum(asked)
        pairs = zip(asked, controls, strict=True)
        asked = [one and control.asks(together) for one, control in pairs]
        reached = []
        for control, one in zip(controls, asked, strict=True):
            claims = falling(source, 8)
            if one:
                control.leaves(claims, 2)
                control.nodes(claims)
            reached.append(claims[: control.most(asked=one)])
        chosen = share(reached, costs, texts, source.uniform(0, 1))
        for number, (control, nodes) in enumerate(zip(controls, chosen, strict=True)):
            control.beside(sum(chosen) - nodes)
            got = source.choice((1, 1, nodes + 1))
            if asked[number]:
                control.update(torch.zeros(nodes + 1), torch.zeros(nodes + 1).long(), [[]] * got)
            else:
                control.update_without(got, nodes)
            steps[number] += 1.0 + control.added / plain_share
            allowed = control.account.tokens + Account.granted(control.account.tokens)
            assert steps[number] <= allowed + 1e-6


def test_in_company_a_second_of_the_machine_is_worth_the_tokens_of_all():
    control = BudgetController(CPU)
    alone = control.price
    control.in_company(4, 4)
    assert control.price == pytest.approx(4 / CPU.target_seconds(4))
    assert control.price > alone


def test_where_rows_are_dear_texts_in_company_soon_take_plain_steps():
    first = BudgetController(STEEP)
    controls = [first, *(first.another() for _ in range(3))]
    for control in controls:
        control.begin()
    drafted = 0
    for _ in range(200):
        for control in controls:
            control.in_company(4, 4)
            asked = control.speculate()
            drafted += asked
            if asked:
                control.nodes(torch.full((4,), 0.5).cumprod(0))
                control.update(torch.zeros(1), torch.zeros(1).long(), [[]])
            else:
                control.update_without()
    assert drafted < 40
