"""Costs of whole rounds: which rounds are timed, and what becomes of the table."""

import pytest
import torch

from specblock.budget.costs import CostTable
from specblock.engine.machine.round_costs import ALL, FIRST, PLAIN, TakingTurns, fitted_to_rounds
from specblock.target.model import Target
from tests.tiny import make_drafter, make_target

COSTS = CostTable({1: 1.0, 96: 2.0}, {1: 0.5}, {1: 0.25, 2: 0.5})


def test_kinds_of_rounds_take_turns_and_later_calls_are_summed_up():
    budget = TakingTurns(8, 2, 3, COSTS)
    for turn in range(18):
        kind = (PLAIN, FIRST, ALL)[turn // 3 % 3]
        assert budget.speculate() == (kind != PLAIN)
        assert budget.kind == kind
        assert budget.settled == (turn % 3 != 0)
        assert budget.asked == 0.0
        for _ in range(7):  # levels of a deep drafter, 2 leaves each
            chosen = budget.leaves(torch.tensor([0.5, 0.3, 0.1]), 3)
            assert chosen == (2 if kind == ALL else 0)
        assert budget.asked == pytest.approx(3.5 if kind == ALL else 0.0)


class Clock:
    """Time that passes only in the calls that it is told of."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def charged(self, call, seconds):
        def timed(*arguments, **settings):
            self.now += seconds
            return call(*arguments, **settings)

        return timed


def test_what_rounds_take_beyond_the_calls_is_found(monkeypatch):
    """The machine is half as fast as before; beside that the first call takes 6 more in a round
    than it did alone, and later ones half as long again."""
    clock = Clock()
    monkeypatch.setattr("specblock.engine.step.time", clock)
    drafter = make_drafter()
    target = Target(make_target("llama"), drafter.feature_layers)
    target.verify_all = clock.charged(target.verify_all, 40.0)
    drafter.first_block = clock.charged(drafter.first_block, 2 * (4.0 + 6.0))
    drafter.next_blocks = clock.charged(drafter.next_blocks, 2 * 3.0)
    table = CostTable({1: 20.0, 96: 20.0}, {1: 4.0}, {1: 2.0, 28: 4.0})
    asked = table.draft_next_seconds(2)
    fitted = fitted_to_rounds(table, target, drafter, list(range(5, 20)))
    assert fitted.overhead == pytest.approx(6.0)
    assert fitted.draft_next_seconds(2) == pytest.approx(3.0)
    assert fitted.draft_next[28] == pytest.approx(4.0 * 3.0 / asked)
    assert fitted.target == table.target
    assert fitted.draft_first == table.draft_first
