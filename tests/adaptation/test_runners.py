"""What comes of an attempt, taken at once or in steps."""

from dataclasses import replace

import pytest
import torch
from tests.adaptation.test_learner import learnable_job, live_model
from tests.adaptation.world import config

from specblock.adaptation.learning.arms import CORRECTION, FULL, HEADS
from specblock.adaptation.learning.learner import BETTER, FAILED, REVERTED, Learner
from specblock.adaptation.learning.runners import Runner
from specblock.steps import drained


@pytest.fixture
def learner():
    return Learner(live_model(), config(heads_lr=2e-2, layers_lr=5e-3))


def finish(learner, job):
    runner = Runner(learner)
    assert runner.take() is None
    runner.start(job)
    assert runner.take() is None
    runner.finish()
    assert not runner.busy
    attempt = runner.take()
    assert runner.take() is None
    return attempt


def test_an_attempt_is_taken_once(learner):
    assert finish(learner, learnable_job(FULL)).outcome == BETTER


def test_going_back_to_the_original_is_known_by_identity(learner):
    made = learnable_job(FULL)
    good = drained(learner.attempting(made)).weights
    # what was learned is the drafter's own now, and something spoilt it
    learner.original = {**good, **{name: learner.original[name] for name in CORRECTION}}
    learner.adopt({name: torch.randn_like(tensor) for name, tensor in good.items()})
    attempt = finish(learner, replace(made, batches=made.batches[:1]))
    assert attempt.outcome == REVERTED
    assert attempt.weights is learner.original


def test_what_is_raised_is_a_failed_attempt(learner):
    attempt = finish(learner, replace(learnable_job(HEADS, steps=1), batches=[["not a record"]]))
    assert attempt.outcome == FAILED
    assert attempt.details["error"]
    assert attempt.weights is None


def test_what_was_given_up_is_nobodys(learner):
    runner = Runner(learner)
    runner.start(learnable_job(FULL))
    assert runner.work()
    runner.give_up()
    assert not runner.busy
    assert runner.take() is None
