"""The figures of a report, recomputed by hand from rows."""

import numpy as np
import pytest

from specblock.bench.measure.rows import Row
from specblock.bench.report.intervals import bootstrap_median, bootstrap_ratio
from specblock.bench.report.summary import Summary
from specblock.budget.costs import CostTable


def row(id, method, tokens, seconds, *, rounds=10, accepted=None, task="t", **more):
    """``seconds`` of decoding after one second of prefill."""
    return Row(
        id=id,
        turn=0,
        task=task,
        method=method,
        order=0,
        prompt_tokens=3,
        new_tokens=tokens,
        finish_reason="stop",
        rounds=rounds,
        accepted_length=accepted,
        seconds=seconds + 1.0,
        prefill_seconds=1.0,
        draft_seconds=more.pop("draft_seconds", 0.0),
        verify_seconds=more.pop("verify_seconds", 0.0),
        identical=None,
        **more,
    )


def figures(rows, name="specblock", **options):
    return Summary(rows, **options).methods([name])[name]


def test_the_accepted_length_is_pooled_and_per_request():
    rows = [
        row("a", "specblock", 9, 1.0, rounds=10, accepted=1.0),
        row("b", "specblock", 9, 1.0, rounds=30, accepted=3.0, round_tokens=90),
    ]
    found = figures(rows)
    assert found["accepted_length"] == pytest.approx((10 + 90) / 40)
    assert found["accepted_length_per_request"] == pytest.approx(2.0)
    assert found["speedup"]["median"] is None
    assert found["versus_eagle3"] is None
    assert found["limit"] is None


def test_methods_are_paired_with_what_shows_their_worth():
    rows = [
        row("a", "eagle3-full", 11, 10.0, draft_seconds=4.0),
        row("b", "eagle3-full", 11, 20.0, draft_seconds=4.0),
        row("a", "specblock", 11, 5.0, draft_seconds=1.0),
        row("b", "specblock", 11, 20.0, draft_seconds=1.0),
    ]
    names = ["specblock", "eagle3-full", "plain"]
    (pair,) = Summary(rows).pairs(names)
    assert (pair["method"], pair["over"]) == ("specblock", "eagle3-full")
    assert pair["speedup"]["median"] == pytest.approx(1.5)
    assert pair["draft_seconds"]["median"] == pytest.approx(0.25)
    assert Summary(rows).pairs(names[:1]) == []


def test_speed_ups_by_prompt_pooled_and_by_task():
    rows = [
        row("a", "plain", 11, 10.0, task="x"),
        row("b", "plain", 11, 20.0, task="y"),
        row("a", "specblock", 11, 5.0, task="x"),
        row("b", "specblock", 21, 10.0, task="y"),  # a divergence made it twice as long
    ]
    found = figures(rows)
    assert found["speedup"]["median"] == pytest.approx((2.0 + 4.0) / 2)
    # plain would have taken 10 s and 40 s for what took 5 s and 10 s
    assert found["speedup_pooled"]["median"] == pytest.approx(50 / 15)
    assert found["tasks"]["x"]["speedup"]["median"] == pytest.approx(2.0)
    assert found["tasks"]["y"]["end_to_end_speedup"]["median"] == pytest.approx(21 / 11 / (11 / 21))
    assert found["tasks"]["x"]["answers"] == 1


def test_the_ratio_to_eagle3():
    rows = [
        row("a", "eagle3", 11, 10.0, draft_seconds=4.0),
        row("b", "eagle3", 11, 10.0, draft_seconds=6.0),
        row("a", "specblock", 11, 8.0, draft_seconds=1.0),
        row("b", "specblock", 11, 5.0, draft_seconds=3.0),
    ]
    versus = figures(rows)["versus_eagle3"]
    assert versus["speedup"]["median"] == pytest.approx((1.25 + 2.0) / 2)
    assert versus["draft_seconds"]["median"] == pytest.approx(0.4)
    assert versus["draft_seconds"]["low"] == pytest.approx(0.25)
    assert versus["draft_seconds"]["high"] == pytest.approx(0.5)
    assert figures(rows, "eagle3")["versus_eagle3"]["speedup"]["median"] == 1.0


def test_rounds_depths_and_nodes():
    rows = [
        row(
            "a", "specblock", 11, 2.0, rounds=4, draft_seconds=0.4, verify_seconds=1.2,
            speculative_rounds=2, draft_calls=6, offered_nodes=40, verified_nodes=10,
            accepted_by_depth=(2, 1), rounds_by_nodes={"3": 1, "7": 1}, peak_bytes=5,
        ),
        row(
            "b", "specblock", 11, 2.0, rounds=4, speculative_rounds=2, accepted_by_depth=(1,),
            rounds_by_nodes={"7": 2}, peak_bytes=9,
        ),
    ]  # fmt: skip
    found = figures(rows)
    assert found["milliseconds_per_round"] == pytest.approx(
        {"draft": 50.0, "verify": 150.0, "rest": 300.0}
    )
    assert found["acceptance_by_depth"] == [0.75, 0.25]
    assert (found["draft_calls_per_round"], found["verified_nodes_per_round"]) == (0.75, 1.25)
    assert found["offered_nodes_per_round"] == 5.0
    assert found["rounds_by_nodes"] == {"3": 1, "7": 3}
    assert found["peak_bytes"] == 9


def test_the_physical_limit_and_its_share():
    rows = [
        row("a", "plain", 11, 10.0),
        row("a", "specblock", 11, 8.0, rounds=4, round_tokens=12, rounds_by_nodes={"7": 2}),
    ]
    costs = {"": CostTable({1: 1.0, 8: 2.0})}
    # two rounds of 8 rows at 2 s, two plain ones at 1 s, and three tokens each
    limit = figures(rows, costs=costs)["limit"]
    assert limit["speedup"] == pytest.approx(3 * 1.0 / 1.5)
    assert limit["share"] == pytest.approx(1.25 / 2.0)
    own = {"specblock": CostTable({1: 1.0, 8: 1.0}), **costs}
    assert figures(rows, costs=own)["limit"]["speedup"] == pytest.approx(3.0)


def test_rows_of_older_files_are_read():
    old = row("a", "specblock", 11, 2.0, rounds=4, accepted=2.5).to_dict()
    for name in ("round_tokens", "rounds_by_nodes", "token_ids", "peak_bytes", "draft_calls"):
        del old[name]
    again = Row.from_dict({**old, "unheard_of": 1})
    assert again.round_token_count == 10.0
    assert figures([again])["accepted_length"] == 2.5


def test_a_paired_ratio_and_its_interval():
    rng = np.random.default_rng(0)
    size = rng.uniform(1, 100, 200)  # prompts differ far more than methods do
    above, below = size * rng.normal(0.5, 0.01, 200), size
    found = bootstrap_ratio(above, below, seed=3)
    assert found["median"] == pytest.approx(above.sum() / below.sum())
    assert found["high"] - found["low"] < 0.01, "pairing takes the size of a prompt out"
    assert found["low"] < 0.5 < found["high"]
    assert bootstrap_ratio(above, below, seed=3) == found
    assert bootstrap_ratio(above, below, seed=4) != found
    assert bootstrap_ratio([], []) == {"median": None, "low": None, "high": None}
    assert bootstrap_ratio([1.0], [2.0], resamples=0) == {"median": 0.5, "low": None, "high": None}
    with pytest.raises(ValueError, match="as many"):
        bootstrap_ratio([1.0], [])


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        found = bootstrap_median(rng.exponential(1.0, 40), seed=trial, resamples=400)
        covered += found["low"] <= np.log(2) <= found["high"]
    assert 180 <= covered <= 199
