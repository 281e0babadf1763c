"""What a text may lose: the account that bounds every round of the budget controller."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.budget.copied import chain
from tests.budget.cost_tables import CPU

from specblock.budget.allowance import Account
from specblock.budget.controller import BudgetController
from specblock.budget.costs import CostTable


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def lose_everything(control: BudgetController, tokens: int) -> list[bool]:
    """Whether the network was asked, in a text of so many tokens of which it proposes none."""
    asked = []
    for _ in range(tokens):
        asked.append(control.speculate())
        if asked[-1]:
            nodes = control.nodes(torch.full((8,), 0.9).cumprod(0))
            control.update(torch.zeros(nodes + 1), torch.zeros(nodes + 1).long(), [[]])
        else:
            control.update_without()
    return asked


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_text_falls_further_behind_plain_decoding_than_its_account(seed):
    """Whatever the claims, the copies and the outcomes, on tables of any shape."""
    source = random.Random(seed)

    def table(low: float) -> dict[int, float]:
        return {count: source.uniform(low, 3) for count in (1, 2, 4, 8, 32, 96)}

    costs = CostTable(table(0.5), table(0), table(0), source.uniform(0, 1))
    control = BudgetController(costs)
    for _ in range(6):
        control.begin()
        tokens, seconds, backlog = 0, 0.0, 1
        for _ in range(source.randint(1, 40)):
            size = source.randint(1, 12)
            claims = torch.tensor([source.random() for _ in range(size)]).sort(descending=True)[0]
            copied = chain(source.random()) if source.random() < 0.5 else None
            if control.speculate(copied):
                leaves = [control.leaves(claims, size) for _ in range(source.randint(0, 3))]
                nodes = control.nodes(claims, torch.rand(size) < 0.5)
                got = source.choice((1, 1, 1, nodes + 1))
                control.update(torch.zeros(nodes + 1), torch.zeros(nodes + 1).long(), [[]] * got)
                seconds += costs.round_seconds(backlog, tuple(leaves), nodes)
                backlog = got
            else:
                tree = control.copies()
                nodes = 0 if tree is None else tree.num_draft
                got = source.choice((1, 1, 1, nodes + 1))
                control.update_without(got, nodes)
                seconds += costs.target_seconds(nodes + 1) + (costs.overhead if nodes else 0)
                backlog += got
            tokens += got
            allowed = tokens + Account.granted(tokens)
            assert seconds * costs.plain_rate <= allowed + 1e-6


def test_another_text_gets_an_account_of_its_own():
    control = BudgetController(CPU)
    assert any(lose_everything(control, 30))
    assert control.account.left < Account.granted(30)
    control.begin()
    assert control.account.left == Account.CREDIT
    control.account.book(30, 1.0, tried=True)
    assert control.account.left == Account.CEILING
    control.begin()
    assert control.account.left == Account.CREDIT


def test_texts_on_which_nothing_pays_get_less_and_less_to_lose():
    control, asked = BudgetController(CPU), []
    for _ in range(60):
        asked.append(sum(lose_everything(control, 30)))
        control.begin()
    assert min(asked[:3]) >= 1
    assert 2 <= sum(asked[-20:]) <= 6
    for _ in range(60):
        for _ in range(30):
            if control.speculate():
                nodes = control.nodes(torch.full((8,), 0.9).cumprod(0))
                fields = torch.zeros(nodes + 1), torch.zeros(nodes + 1).long()
                control.update(*fields, [[]] * (nodes + 1))
            else:
                control.update_without()
        control.begin()
    assert control.account.left == Account.CREDIT, "it finds out that texts have become better"


def rich() -> BudgetController:
    """With all that an account can hold."""
    control = BudgetController(CPU)
    control.account.left = Account.CEILING
    return control


def rounds_until_off(control: BudgetController, tokens: int) -> int:
    """Rounds of which so many tokens come till the network is not asked; 200 at most."""
    for count in range(200):
        if not control.speculate():
            return count
        nodes = control.nodes(torch.full((8,), 0.9).cumprod(0))
        control.update(torch.zeros(nodes + 1), torch.zeros(nodes + 1).long(), [[]] * tokens)
    return 200


def test_a_long_good_stretch_does_not_pay_for_a_bad_one():
    control = rich()
    assert rounds_until_off(control, 6) == 200
    assert control.account.left == Account.CEILING
    assert rounds_until_off(control, 1) < 20


def test_rounds_shrink_to_what_the_account_covers():
    control = rich()
    claims = torch.full((16,), 0.98).cumprod(0)
    control.speculate()
    many = control.nodes(claims)
    control.account.left = 0.7
    control.speculate()
    few = control.nodes(claims)
    assert 1 <= few < many
    control.account.left = Account.CEILING
    control.speculate()
    assert control.leaves(torch.full((8,), 0.12), 8) > 0
    control.begin()
    control.speculate()
    control.account.left = 0.2
    assert control.leaves(torch.full((8,), 0.12), 8) == 0


def test_one_node_is_verified_whatever_the_survival_model_says():
    control = rich()
    assert control.speculate()
    assert control.nodes(torch.full((8,), 1e-6)) == 1
    assert control.nodes(torch.zeros(0)) == 0


def test_pairs_of_rounds_without_the_network_are_charged_when_it_reads_them():
    def lost(plain_rounds: int) -> float:
        control = BudgetController(CPU)
        for _ in range(plain_rounds):
            control.update_without()
        control.account.left = before = 3.0
        assert control.speculate()
        control.update(torch.zeros(2), torch.zeros(2).long(), [[]])
        return before - control.account.left

    extra = CPU.draft_first_seconds(31) - CPU.draft_first_seconds(1)
    assert extra > 0
    assert lost(30) - lost(0) == pytest.approx(extra * CPU.plain_rate)


def test_some_texts_without_luck_do_not_end_drafting():
    """A drafter that wins on every third text goes on after six that lost all they could."""
    control, asked = BudgetController(CPU), []
    for number in range(36):
        control.begin()
        if number < 6 or number % 3:
            asked.append(sum(lose_everything(control, 48)))
            continue
        count = 0
        for _ in range(20):
            if control.speculate():
                count += 1
                nodes = control.nodes(torch.full((8,), 0.9).cumprod(0))
                fields = torch.zeros(nodes + 1), torch.zeros(nodes + 1).long()
                control.update(*fields, [[]] * 3)
            else:
                control.update_without()
        asked.append(count)
    assert min(asked) >= 1
    assert asked[-1] >= 2
    assert sum(asked[33:]) >= 15
