"""Updates in the gaps between requests: their price, their steps, and what comes of them."""

import random
import time

import pytest
import torch
from tests.adaptation.test_learner import learnable_job, live_model
from tests.adaptation.world import config, make_speculator, prompt

from specblock.adaptation.deciding.gaps import Gaps
from specblock.adaptation.deciding.ledger import Ledger
from specblock.adaptation.gap_work import GapWork
from specblock.adaptation.learning.arms import FULL
from specblock.adaptation.learning.learner import BETTER, FAILED, Learner
from specblock.adaptation.learning.runners import Runner


def never():
    return False


@pytest.mark.parametrize("rate", [0.05, 0.5, 4.0])
def test_the_price_is_the_delay_of_a_simulated_day(rate):
    """Poisson arrivals into gaps full of work that takes an uneven while to give up, against
    brute force; half of the gaps have no work in them."""
    source, gaps = random.Random(0), Gaps()
    work = delay = 0.0
    for number in range(4000):
        gap, waited = source.expovariate(rate), 0.0
        working = number % 2 == 0
        if working:
            waited = source.choice((0.002, 0.01, 0.03))
            work, delay = work + gap, delay + waited
        gaps.ended(gap, [waited], working=working)
    assert gaps.price <= 1.0
    assert gaps.price == pytest.approx(delay / work, rel=0.35)  # some twenty gaps are remembered


def test_before_anything_came_a_second_costs_itself():
    gaps = Gaps()
    assert gaps.price == 1.0
    gaps.ended(10.0, [0.0], working=False)
    assert gaps.price == pytest.approx(0.1 * 0.05)
    for _ in range(200):
        gaps.ended(0.01, [0.02], working=True)
    assert gaps.price == 1.0, "a busy machine"


def test_the_steps_are_small_and_learn():
    learner = Learner(live_model(), config(where="idle", heads_lr=2e-2, layers_lr=5e-3))
    runner, job = Runner(learner), learnable_job(FULL)
    assert not runner.busy
    runner.start(job)
    steps = 1
    while runner.work():
        assert runner.take() is None
        steps += 1
    attempt = runner.take()
    assert attempt.outcome == BETTER
    records = sum(map(len, job.batches)) + 2 * len(job.held_out)
    assert steps == records + 1
    assert runner.take() is None


def test_seconds_between_steps_are_nobodys(monkeypatch):
    learner = Learner(live_model(), config(where="idle"))
    runner, slept = Runner(learner), 0
    runner.start(learnable_job(FULL, steps=1))
    began = time.perf_counter()
    while runner.work():
        time.sleep(0.05)
        slept += 1
    assert slept > 3
    assert runner.take().seconds < time.perf_counter() - began - 0.04 * slept


def test_what_a_step_raises_is_a_failed_attempt():
    learner = Learner(live_model(), config(where="idle"))
    runner = Runner(learner)
    job = learnable_job(FULL, steps=1)
    job.batches[0][-1] = "not a record"
    runner.start(job)
    while runner.work():
        pass
    assert runner.take().outcome == FAILED
    assert not runner.busy


def test_work_is_paid_by_those_who_wait():
    learner, ledger = Learner(live_model(), config(where="idle")), Ledger(1.0, 0.0)
    runner = Runner(learner)
    gaps = GapWork(runner, ledger, used=True)
    assert not gaps.work(never)
    assert ledger.machine == 0.0
    runner.start(learnable_job(FULL, steps=1))
    assert gaps.work(never)
    gaps.ended(2.0, [0.25, 0.5])
    gaps.pay(100.0)
    assert ledger.spent == 0.75
    assert 0 < ledger.machine < 60
    other = GapWork(Runner(learner), ledger, used=False)
    assert (other.price, other.used, other.work(never)) == (1.0, False, False)
    other.pay(2.0)
    assert ledger.spent == 2.75


def test_a_speculator_learns_while_nobody_asks(tmp_path):
    torch.manual_seed(0)
    asked = config(where="idle", policy="always-heads", folder=tmp_path, exploration_seconds=60.0)
    speculator = make_speculator(asked)
    adaptation = speculator.adaptation
    expected = speculator.generate(prompt(1), max_new_tokens=8).token_ids
    for number in range(12):
        speculator.generate(prompt(number), max_new_tokens=8)
        assert adaptation.status()["attempts"] == 0, "not between requests"
    while adaptation.rest(never):
        pass
    adaptation.came(1.0, [0.0])
    status = adaptation.status()
    assert status["attempts"] == 1
    assert status["update_seconds"] > 0
    assert speculator.generate(prompt(1), max_new_tokens=8).token_ids == expected
    speculator.generate(prompt(2), max_new_tokens=8)
    adaptation.rest(never)
    began = time.perf_counter()
    speculator.close()  # whatever is under way
    assert time.perf_counter() - began < 5
