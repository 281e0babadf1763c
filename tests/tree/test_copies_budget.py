"""What the controller makes of copies: alone, instead of the network, beside it."""

import math

import pytest
import torch
from tests.tree.cost_tables import CPU

from specblock.tree.budget import BudgetController, CopiesController
from specblock.tree.draft_tree import DraftTree
from specblock.tree.survival import COPIED


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def chain(probability: float, length: int = 8) -> DraftTree:
    """A copy of ``length`` tokens 1, 2, ..., each claimed with ``probability``."""
    index = torch.arange(length + 1)
    log_probs = torch.full((length + 1,), math.log(probability))
    log_probs[0] = 0.0
    classes = torch.full_like(index, COPIED)
    classes[0] = 0
    return DraftTree(index, index - 1, index, log_probs.cumsum(0), log_probs, classes)


def test_good_copies_are_verified_alone():
    control = BudgetController(CPU)
    assert not control.speculate(chain(0.97))
    tree = control.copies()
    tree.validate()
    assert 4 <= tree.num_draft <= 8


def test_without_copies_or_with_weak_ones_the_network_is_asked():
    for copied in (None, DraftTree.root_only(0), chain(0.15)):
        control = BudgetController(CPU)
        assert control.speculate(copied)


def test_hopeless_copies_are_not_verified():
    control = BudgetController(CPU)
    control.lead = -1.0
    control._wait = 1000
    assert not control.speculate(chain(0.05))
    assert control.copies() is None
    assert not control.speculate(None)
    assert control.copies() is None


def test_the_text_tells_whether_copies_are_right_verified_or_not():
    control = BudgetController(CPU)
    control.lead, control._wait = -1.0, 1000
    for _ in range(60):
        control.speculate(chain(0.6))
        control.copies()
        control.update_without(1)
        control.drawn([50])  # something else every time
    assert control.copies() is None
    for _ in range(300):
        control.speculate(chain(0.6))
        control.update_without(1)
        control.drawn([1, 2, 3, 4])
    assert not control.speculate(chain(0.6))
    assert control.copies().num_draft >= 2


def test_the_network_must_be_worth_more_than_the_copies():
    """The same rounds of the network lose their lead where copies would have done as well."""

    def lead_after(copied: DraftTree | None) -> float:
        control = BudgetController(CPU)
        control._asking.top = 1e9  # always asked
        control.lead = 0.0
        control.speculate(copied)
        nodes = control.nodes(torch.full((8,), 0.8).cumprod(0))
        trials = [[]] * 4
        control.update(torch.zeros(nodes + 1), torch.zeros(nodes + 1).long(), trials)
        return control.lead

    assert lead_after(None) > lead_after(chain(0.7)) > lead_after(chain(0.9))


def test_rounds_of_copies_pay_for_their_rows():
    control = BudgetController(CPU)
    control.speculate(chain(0.97))
    nodes = control.copies().num_draft
    before = control._overall.bottom * control._overall.keep
    control.update_without(nodes + 1)
    spent = control._overall.bottom - before
    assert spent == pytest.approx(CPU.target_seconds(nodes + 1) + CPU.overhead)


def test_without_a_network_copies_are_all_there_is():
    control = CopiesController(CPU)
    assert not control.speculate(None)
    assert control.copies() is None
    assert not control.speculate(chain(0.97))
    assert control.copies().num_draft >= 4
    for _ in range(100):
        assert not control.speculate(chain(0.6))
        control.update_without(1)
        control.drawn([50])
    assert control.copies() is None
