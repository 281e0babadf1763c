"""Figures of played rounds, by hand."""

import pytest

from specblock.bench.playback.figures import launched, method_figures, pair_figures
from specblock.bench.playback.rounds import PlayedRound, priced
from specblock.bench.playback.run import Row
from specblock.bench.report.intervals import bootstrap_quotient
from specblock.budget.costs import CostTable

TABLE = CostTable({1: 10.0, 11: 20.0}, {1: 1.0, 3: 2.0}, {1: 4.0}, overhead=0.5)


def row(method, id, tokens, rounds, draft, verify, turn=0, calls=0):
    return Row("s", method, id, turn, "t", tokens, rounds, calls, 0, draft, verify, 0.0)


def test_rounds_are_priced_by_hand():
    rounds = [
        PlayedRound(3, (5, 2), 10),  # 2 + 4 + 4, 20, 0.5
        PlayedRound(0, (), 5),  # copies alone: 15, 0.5
        PlayedRound(0, (), 0),  # a plain step: 10
    ]
    cost = priced(rounds, TABLE)
    assert (cost.draft, cost.verify, cost.rest) == pytest.approx((10.0, 45.0, 1.0))
    assert cost.seconds == pytest.approx(56.0)
    assert [one.calls for one in rounds] == [3, 0, 0]


def test_the_figures_of_a_method():
    rows = [
        row("m", "a", 10, 5, 20.0, 30.0, calls=10),
        row("m", "a", 10, 5, 10.0, 40.0, turn=1, calls=10),
        row("m", "b", 30, 10, 0.0, 100.0),
        row("m", "c", 8, 2, 5.0, 5.0),
    ]
    found = method_figures(rows, plain_seconds=10.0, resamples=200)
    # prompts: 200 / 100, 300 / 100, 80 / 10
    assert found["speedup"]["median"] == 3.0
    assert found["speedup_pooled"]["median"] == pytest.approx(580 / 210)
    assert found["drafting_share"]["median"] == pytest.approx(35 / 210)
    assert found["accepted_length"]["median"] == pytest.approx(58 / 22)
    assert found["round_steps"]["median"] == pytest.approx(21 / 22)
    # speed-up of all together = tau / plain steps of a round
    assert found["speedup_pooled"]["median"] == pytest.approx(
        found["accepted_length"]["median"] / found["round_steps"]["median"]
    )
    assert found["calls_per_round"] == pytest.approx(20 / 22)
    assert found["speedup"]["low"] <= 3.0 <= found["speedup"]["high"]


def test_a_pair_and_where_it_breaks_even():
    own = [row("m", "a", 20, 10, 20.0, 80.0), row("m", "b", 40, 20, 40.0, 160.0)]
    rival = [row("r", "a", 20, 8, 40.0, 80.0), row("r", "b", 40, 16, 80.0, 160.0)]
    found = pair_figures(own, rival, resamples=100)
    assert found["speedup"]["median"] == pytest.approx(1.2)
    assert found["speedup_pooled"]["median"] == pytest.approx(360 / 300)
    assert found["drafting"]["median"] == pytest.approx(0.5)
    assert found["drafting_per_round"]["median"] == pytest.approx((60 / 30) / (120 / 24))
    assert found["accepted_length"]["median"] == pytest.approx((60 / 30) / (60 / 24))
    assert found["break_even"]["median"] == pytest.approx((300 / 30) / (360 / 24))
    # faster by as much as tau over tau is above break-even
    assert found["speedup_pooled"]["median"] == pytest.approx(
        found["accepted_length"]["median"] / found["break_even"]["median"]
    )
    with pytest.raises(ValueError, match="same prompts"):
        pair_figures(own, rival[:1])


def test_longer_launches_by_hand():
    rows = [row("m", "a", 20, 10, 20.0, 80.0, calls=30)]
    assert launched(rows, 5.0, 0.0) == pytest.approx((100 / 10 / 5, 0.2))
    # 30 calls and 10 verifications take one more each; so does the plain step
    assert launched(rows, 5.0, 1.0) == pytest.approx((140 / 10 / 6, 50 / 140))


def test_a_quotient_of_rates_and_its_interval():
    own, rival = ([1.0, 3.0], [1.0, 1.0]), ([2.0, 2.0], [4.0, 4.0])
    found = bootstrap_quotient(own, rival, resamples=500)
    assert found["median"] == pytest.approx((4 / 2) / (4 / 8))
    assert (found["low"], found["high"]) == pytest.approx((2.0, 6.0))
    assert bootstrap_quotient(([0.0], [1.0]), ([1.0], [0.0]))["median"] is None
    with pytest.raises(ValueError, match="as many values"):
        bootstrap_quotient(([1.0], [1.0]), ([1.0, 2.0], [1.0]))
