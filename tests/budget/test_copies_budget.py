"""What the controller makes of copies: alone, instead of the network, beside it."""

import pytest
import torch
from tests.budget.copied import chain
from tests.budget.cost_tables import CPU

from specblock.budget.allowance import Account
from specblock.budget.controller import BudgetController, CopiesController
from specblock.tree.draft_tree import DraftTree


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def rich(control: BudgetController) -> BudgetController:
    """With all that an account can hold."""
    control.account.left = Account.CEILING
    return control


def test_good_copies_are_verified_alone():
    control = rich(BudgetController(CPU))
    assert not control.speculate(chain(0.97))
    tree = control.copies()
    tree.validate()
    assert 4 <= tree.num_draft <= 8


def test_without_copies_or_with_weak_ones_the_network_is_asked():
    for copied in (None, DraftTree.root_only(0), chain(0.15)):
        control = rich(BudgetController(CPU))
        assert control.speculate(copied)


def test_hopeless_copies_are_not_verified():
    control = rich(BudgetController(CPU))
    control._pending = 10**6  # the network has too much to read first
    assert not control.speculate(chain(0.05))
    assert control.copies() is None
    assert not control.speculate(None)
    assert control.copies() is None


def test_the_text_tells_whether_copies_are_right_verified_or_not():
    control = rich(BudgetController(CPU))
    control._pending = 10**6  # the network has too much to read first
    for _ in range(60):
        control.speculate(chain(0.6))
        control.update_without(1, control.copies().num_draft if control.copies() else 0)
        control.drawn([50])  # something else every time
    assert control.copies() is None
    for _ in range(300):
        control.speculate(chain(0.6))
        control.update_without(1)
        control.drawn([1, 2, 3, 4])
    control.account.left = Account.CEILING
    assert not control.speculate(chain(0.6))
    assert control.copies().num_draft >= 2


def test_the_network_must_be_worth_more_than_the_copies():
    """The same proposals gain less the more the copies would have brought without them."""

    def gain_after(copied: DraftTree | None) -> float:
        control = rich(BudgetController(CPU))
        control.speculate(copied)
        before = control._means.asking.top * control._means.asking.keep
        control.nodes(torch.full((8,), 0.8).cumprod(0))
        return control._means.asking.top - before

    assert gain_after(None) > gain_after(chain(0.7)) > gain_after(chain(0.9))


def test_rounds_of_copies_pay_for_their_rows():
    control = rich(BudgetController(CPU))
    control.speculate(chain(0.97))
    nodes = control.copies().num_draft
    before = control._means.speedup.bottom * control._means.speedup.keep
    control.update_without(nodes + 1, nodes)
    steps = control._means.speedup.bottom - before
    spent = CPU.target_seconds(nodes + 1) + CPU.overhead
    assert steps == pytest.approx(spent / CPU.target_seconds(1))


def test_without_a_network_copies_are_all_there_is():
    control = rich(CopiesController(CPU))
    assert not control.speculate(None)
    assert control.copies() is None
    assert not control.speculate(chain(0.97))
    assert control.copies().num_draft >= 4
    for _ in range(100):
        assert not control.speculate(chain(0.6))
        control.update_without(1)
        control.drawn([50])
    assert control.copies() is None
