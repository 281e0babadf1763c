"""Threads are dropped where they wait for each other, and taken up again."""

import random

import pytest
import torch

from specblock.engine.machine.governor import MOST_PATIENCE, ThreadGovernor, begin_with

IDLE = {2: 1.0, 1: 1.4}
BUSY = {2: 5.0, 1: 1.6}
SLOW = {2: 5.0, 1: 7.0}  # the whole machine is slower, and both threads still help


def decode(governor, forwards, machine_at, seed=0):
    """Mean seconds of forwards of 1 to 8 rows on a machine that changes; one row idle is 1."""
    generator, total = random.Random(seed), 0.0
    for number in range(forwards):
        rows = generator.choice([1, 1, 4, 8])
        seconds = machine_at(number)[governor.threads] * (1 + rows / 8) / 1.125
        seconds *= generator.uniform(1.0, 1.2)
        governor.ran(rows, seconds)
        total += seconds
    return total / forwards


def made(threads=2):
    told = []
    return ThreadGovernor(threads, told.append), told


def test_an_idle_machine_keeps_its_threads():
    governor, told = made()
    decode(governor, 2000, lambda number: IDLE)
    assert told == []


@pytest.mark.parametrize("from_the_start", [True, False])
def test_beside_a_busy_process_one_thread_decodes_nearly_as_fast_as_alone(from_the_start):
    governor, _ = made()
    if from_the_start:
        governor.look(lambda threads: BUSY[threads])
        assert governor.threads == 1
    found = decode(
        governor, 2000, lambda number: IDLE if number < 20 and not from_the_start else BUSY
    )
    alone = decode(made(1)[0], 2000, lambda number: {1: BUSY[1]})
    assert alone / found > 0.9
    assert governor.threads == 1


def test_when_the_others_have_gone_all_threads_come_back():
    governor, told = made()
    decode(governor, 400, lambda number: BUSY if 20 < number < 200 else IDLE)
    assert told[0] == 1
    assert governor.threads == 2


def test_a_machine_that_is_slower_as_a_whole_is_tried_rarely():
    governor, told = made()
    decode(governor, 4000, lambda number: IDLE if number < 20 else SLOW)
    assert governor.threads == 2
    assert len(told) < 2 * (6 + 4000 // MOST_PATIENCE)


def test_one_thread_is_left_alone():
    governor, told = made(1)
    governor.look(lambda threads: 1.0)
    decode(governor, 100, lambda number: {1: 1.0 if number < 50 else 9.0})
    assert told == []


def test_looking_at_an_idle_machine_changes_nothing_for_good():
    governor, told = made()
    governor.look(lambda threads: IDLE[threads])
    assert governor.threads == told[-1] == 2


@pytest.mark.parametrize(("asked", "alone_is_faster", "expected"), [(3, True, 3), (None, True, 1)])
def test_a_long_job_begins_with_the_threads_that_help(
    asked, alone_is_faster, expected, monkeypatch
):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seconds = {1: 1.0, 2: 2.0} if alone_is_faster else {1: 2.0, 2: 1.0}
        monkeypatch.setattr(ThreadGovernor, "_seconds_of_passes", lambda _, n: seconds[n])
        begin_with(asked, "cpu")
        assert torch.get_num_threads() == expected
        begin_with(None, "cuda")  # nothing is looked at, and a wrong device is said elsewhere
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
