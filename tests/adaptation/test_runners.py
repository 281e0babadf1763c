"""Where an attempt runs makes no difference to what comes of it; a process that dies, to little."""

import copy
import os
import signal
import time
from concurrent.futures import wait
from dataclasses import replace

import pytest
import torch
from tests.adaptation.test_learner import learnable_job, live_model
from tests.adaptation.world import config

from specblock.adaptation.learning.arms import CORRECTION, FULL, HEADS
from specblock.adaptation.learning.learner import BETTER, FAILED, REVERTED, Learner
from specblock.adaptation.learning.runners import make_runner

PLACES = (
    "between-requests",
    "thread",
    pytest.param("process", marks=pytest.mark.slow),  # a process imports everything anew
)


@pytest.fixture
def start():
    """A runner in a place, and its learner; closed when the test is over."""
    started = []

    def make(where, **more):
        learner = Learner(live_model(), config(where=where, **more))
        started.append(make_runner(learner, learner.config))
        return started[-1], learner

    yield make
    for runner in started:
        runner.close()


def finish(runner):
    """What comes of the attempt that runs."""
    if getattr(runner, "_future", None) is not None:
        wait([runner._future], timeout=120)
    return runner.take()


def same(first, second):
    if first is None or second is None:
        return first is second
    return all(torch.equal(first[name], second[name]) for name in first | second)


@pytest.mark.parametrize("where", PLACES[1:])
def test_two_updates_in_a_row_come_out_as_between_requests(start, where):
    made = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the process has
    try:
        for place in ("between-requests", where):
            runner, learner = start(place, heads_lr=2e-2, layers_lr=5e-3)
            assert runner.take() is None
            made.append([])
            for number in range(2):
                runner.start(learnable_job(FULL))
                attempt = finish(runner)
                assert runner.take() is None
                assert number or attempt.outcome == BETTER
                if attempt.weights is not None:
                    learner.adopt(attempt.weights)
                state = copy.deepcopy(learner.optimisers[FULL].state_dict())
                made[-1].append((attempt, state))
    finally:
        torch.set_num_threads(threads)
    for (expected, known), (found, state) in zip(*made, strict=True):
        assert (found.outcome, found.gain) == (expected.outcome, expected.gain)
        assert same(found.weights, expected.weights)
        for key, moments in known["state"].items():
            assert same(state["state"][key], moments)


@pytest.mark.parametrize("where", PLACES)
def test_going_back_to_the_original_is_known_by_identity(start, where):
    runner, learner = start(where, heads_lr=2e-2, layers_lr=5e-3)
    made = learnable_job(FULL)
    good = learner.attempt(made).weights
    # what was learned is the drafter's own now, and something spoilt it
    learner.original = {**good, **{name: learner.original[name] for name in CORRECTION}}
    learner.adopt({name: torch.randn_like(tensor) for name, tensor in good.items()})
    runner.start(replace(made, batches=made.batches[:1]))
    attempt = finish(runner)
    assert attempt.outcome == REVERTED
    assert attempt.weights is learner.original


@pytest.mark.parametrize("where", PLACES)
def test_what_is_raised_is_a_failed_attempt(start, where):
    runner, _ = start(where)
    made = learnable_job(HEADS, steps=1)
    runner.start(replace(made, batches=[["not a record"]]))
    attempt = finish(runner)
    assert attempt.outcome == FAILED
    assert attempt.details["error"]
    assert attempt.weights is None


def test_a_process_that_is_killed_fails_its_attempt_and_is_started_again(start):
    runner, learner = start("process", duty=0.01)  # it rests for long: there is time to kill it
    runner.start(learnable_job(HEADS, steps=1))
    while not runner._pool._processes:
        time.sleep(0.01)
    for child in list(runner._pool._processes):
        os.kill(child, signal.SIGKILL)
    attempt = finish(runner)
    assert attempt.outcome == FAILED
    assert "BrokenProcessPool" in attempt.details["error"]
    assert attempt.seconds > 0
    runner.config = learner.config.model_copy(update={"duty": 1.0})
    runner.start(learnable_job(FULL, steps=12))
    assert finish(runner).outcome != FAILED
    for child in list(runner._pool._processes):  # now while it has nothing to do
        os.kill(child, signal.SIGKILL)
    while not runner._pool._broken:
        time.sleep(0.01)
    runner.start(learnable_job(FULL, steps=12))
    assert finish(runner).outcome != FAILED


def test_no_process_before_the_first_attempt(start):
    runner, _ = start("process")
    assert runner._pool is None
    assert runner.take() is None
