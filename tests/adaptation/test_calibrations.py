"""What budgets believe follows the weights, there and back."""

from dataclasses import replace

import torch

from specblock.adaptation.calibrations import Calibrations
from specblock.budget.controller import BudgetController
from specblock.budget.costs import CostTable


def make_budgets():
    budgets = [BudgetController(CostTable({1: 1.0, 8: 1.5})) for _ in range(2)]
    for budget in budgets:  # which have seen something
        budget.model = replace(budget.model, counts=torch.ones_like(budget.model.counts))
    return budgets


def another_model(budget):
    return replace(budget.model, counts=2 * budget.model.counts)


def test_going_back_restores_what_was_known_before_the_change():
    budgets = make_budgets()
    before = [budget.model for budget in budgets]
    calibrations = Calibrations(budgets)
    calibrations.changed()
    assert all(budget.model is model for budget, model in zip(budgets, before, strict=True))
    for budget in budgets:
        budget.model = another_model(budget)
    calibrations.go_back()
    assert all(budget.model is model for budget, model in zip(budgets, before, strict=True))


def test_after_a_resume_going_back_keeps_what_is_known():
    budgets = make_budgets()
    before = [budget.model for budget in budgets]
    Calibrations(budgets).go_back()
    assert all(budget.model is model for budget, model in zip(budgets, before, strict=True))
