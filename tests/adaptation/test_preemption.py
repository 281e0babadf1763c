"""Steps of learning make room for those who come, and nothing is lost by it but time."""

import itertools

import torch
from tests.adaptation.test_learner import learnable_job, live_model
from tests.adaptation.world import config

from specblock.adaptation.learning.arms import FULL
from specblock.adaptation.learning.learner import Learner
from specblock.adaptation.learning.preemption import Preemption
from specblock.adaptation.learning.runners import Runner
from specblock.steps import drained


def attempt(waiting):
    """An update of everything whose every step is asked whether somebody waits, and its steps."""
    torch.manual_seed(0)
    runner = Runner(Learner(live_model(), config(where="idle", heads_lr=2e-2, layers_lr=5e-3)))
    runner.start(learnable_job(FULL, steps=6))
    steps = 1
    while runner.work(waiting):
        steps += 1
    return runner.take(), steps


def test_an_update_that_was_given_up_everywhere_is_the_same_update():
    undisturbed, steps = attempt(None)
    patience = itertools.cycle(range(0, 12000, 700))  # operators until somebody comes
    left = [0]

    def waiting():
        left[0] -= 1
        if left[0] < 0:
            left[0] = next(patience)
        return left[0] == 0

    disturbed, more = attempt(waiting)
    assert more > steps + 10, "it was given up"
    assert disturbed.outcome == undisturbed.outcome
    assert disturbed.details == undisturbed.details
    for name, tensor in undisturbed.weights.items():
        assert torch.equal(disturbed.weights[name], tensor), name


def test_work_is_given_up_in_the_backward_pass_too():
    weight = torch.ones(3, requires_grad=True)
    seen, preemption = [], Preemption()

    def work():
        loss = (weight * 2.0).exp().sum()
        seen.append("forward")
        (gradient,) = torch.autograd.grad(loss, [weight])
        seen.append("backward")
        return gradient

    preemption.waiting = lambda: seen == ["forward"]
    steps = preemption.whole(work)
    next(steps)
    assert seen == ["forward"]
    preemption.waiting = lambda: False
    assert torch.equal(drained(steps), 2.0 * torch.full((3,), 2.0).exp())
    assert seen == ["forward", "forward", "backward"]


def test_while_somebody_waits_nothing_is_computed():
    preemption = Preemption()
    preemption.waiting = lambda: True
    steps = preemption.whole(lambda: torch.ones(1) + 1)
    for _ in range(3):
        next(steps)
    preemption.waiting = None
    assert drained(steps).item() == 2.0
