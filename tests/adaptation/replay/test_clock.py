"""Arrivals and the queue of one server, against a simulation by events."""

import heapq
import random

import pytest

from specblock.adaptation.replay.clock import Clock, arrivals, served


def test_arrivals_go_on_as_they_began_and_have_the_rate():
    source = random.Random(1)
    seconds = [source.uniform(0.5, 1.5) for _ in range(4000)]
    whole = arrivals(seconds, 0.4, seed=3)
    assert arrivals(seconds[:100], 0.4, seed=3) == whole[:101]
    assert whole[0] == 0.0
    assert len(whole) == 4001
    assert sum(seconds) / whole[-1] == pytest.approx(0.4, rel=0.05)
    assert arrivals(seconds, 0.8, seed=3)[-1] == pytest.approx(whole[-1] / 2)
    assert arrivals(seconds, 0.4, seed=4) != whole


@pytest.mark.parametrize("load", [0.3, 0.9])
def test_times_to_answer_are_those_of_a_simulated_queue(load):
    source = random.Random(0)
    seconds = [source.expovariate(1.0) for _ in range(500)]
    delays = [source.choice((0.0, 0.0, 0.1)) for _ in seconds]
    at = arrivals(seconds, load, seed=0)[:-1]
    found = served(at, delays, seconds)
    events = [(time, number) for number, time in enumerate(at)]
    heapq.heapify(events)
    busy_until, taken = 0.0, []
    while events:
        arrived, number = heapq.heappop(events)
        begins = busy_until if busy_until > arrived else arrived
        busy_until = begins + delays[number] + seconds[number]
        taken.append(busy_until - arrived)
    assert found.mean == pytest.approx(sum(taken) / len(taken))
    assert sorted(taken)[int(0.95 * len(taken)) - 2] <= found.p95 <= sorted(taken)[-20]
    assert found.day == pytest.approx(busy_until)


def test_a_gap_is_what_is_left_until_the_next_request():
    clock = Clock()
    assert clock.gap(0.0) == 0.0
    assert clock.answer(0.0, 0.0, 2.0) == 2.0
    assert clock.gap(5.0) == 3.0
    assert clock.answer(5.0, 0.5, 2.0) == 2.5
    assert clock.gap(6.0) == 0.0, "it waits"
    assert clock.answer(6.0, 0.0, 1.0) == 2.5
