"""The promise in seconds by the clock: a table that is wrong costs a text little."""

import pytest
import torch
from tests.budget.copied import chain
from tests.budget.cost_tables import CPU

from specblock.budget.controller import CopiesController
from specblock.budget.drag import Drag


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def decode(plain, drafting, tokens=600, told=True):
    """Seconds a token and shares of drafting rounds, where rounds of both kinds take so many times
    the table's; three of four copies are right."""
    control, seconds, written, drafted, rounds = (
        CopiesController(CPU, heed_clock=told),
        0.0,
        0,
        0,
        0,
    )
    control.begin()
    while written < tokens:
        copied = chain(0.8) if control.affords() else None
        control.speculate(copied)
        tree = control.copies()
        nodes = 0 if tree is None else tree.num_draft
        yielded = 1 + (nodes and min(nodes, 3 if rounds % 4 else 0))
        taken = CPU.target_seconds(nodes + 1) + (CPU.overhead if nodes else 0.0)
        taken *= drafting if nodes else plain
        control.update_without(yielded, nodes)
        control.drawn([1, 2, 3, 4][:yielded] if rounds % 4 else [50])
        control.clocked(taken, control.added, tried=control.tried)
        seconds, written = seconds + taken, written + yielded
        drafted, rounds = drafted + (nodes > 0), rounds + 1
    return seconds / written / CPU.target_seconds(1), drafted / rounds


def test_where_drafting_is_far_slower_than_the_table_little_is_lost():
    lost, drafted = decode(plain=1.0, drafting=4.0)
    assert lost < 1.08
    assert drafted < 0.2
    assert decode(plain=1.0, drafting=4.0, told=False)[0] > 1.5  # what the table alone would do


def test_a_machine_that_is_slower_for_all_alike_drafts_as_before():
    usual, drafted = decode(plain=1.0, drafting=1.0)
    slow, as_much = decode(plain=4.0, drafting=4.0)
    assert drafted > 0.7
    assert as_much > drafted - 0.15  # some plain rounds are compared with
    assert slow / 4 < 1.1 * usual


def test_what_the_table_knows_is_left_to_it():
    assert decode(plain=1.0, drafting=1.1) == pytest.approx(
        decode(plain=1.0, drafting=1.1, told=False)
    )


def test_nothing_is_said_before_both_kinds_were_seen():
    drag = Drag()
    for _ in range(Drag.ENOUGH):
        drag.add(True, 3.0, 1.0)
    assert drag.factor == 1.0
    assert drag.wants_plain
    for _ in range(Drag.ENOUGH):
        drag.add(False, 1.5, 1.0)
    assert drag.factor == pytest.approx(2.0)
    assert not drag.wants_plain
    for _ in range(Drag.STALE):
        drag.add(True, 3.0, 1.0)
    assert drag.wants_plain
