"""The sentence at the end says what was measured, and the reason where it does not pay."""

import pytest

from specblock.fitting.verdict import sentence


def report(low, median, high, *, tau=2.0, rounds=100, drafted=50, least=1.3, answers=12):
    own = {
        "speedup": {"low": low, "median": median, "high": high},
        "answers": answers,
        "accepted_length": tau,
        "rounds": rounds,
        "speculative_rounds": drafted,
    }
    return {"methods": {"specblock": own}, "break_even": least}


def test_a_drafter_that_pays():
    assert sentence(report(1.11, 1.234, 1.5)) == (
        "decodes 1.23 times as fast as plain on prompts it has not seen (95 % interval 1.11 to "
        "1.50, 12 prompts)"
    )


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        (
            {"tau": 1.1},
            "acceptance is too low for this machine's cost of drafting: a round that drafts brings "
            "1.20 tokens and costs at least 1.30 plain steps",
        ),
        ({"tau": 1.0, "drafted": 0}, "a round with one draft costs 1.30 plain steps, and none was"),
        ({"least": None}, "could not be measured in time; run `specblock calibrate`"),
        ({}, "within what measuring scatters (a round that drafts brings 3.00 tokens"),
    ],
)
def test_a_drafter_that_does_not(figures, reason):
    said = sentence(report(0.9, 0.98, 1.02, **figures))
    assert said.startswith("does not pay here, because ")
    assert reason in said
    assert said.endswith("0.98 times (95 % interval 0.90 to 1.02, 12 prompts)")


def test_nothing_measured():
    assert "nothing could be measured" in sentence(report(None, None, None))
