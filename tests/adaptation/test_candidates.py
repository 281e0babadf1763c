"""What is neither better nor worse is trained on from; it decodes only once it is better."""

import pytest
import torch
from tests.adaptation.test_learner import job, live_model
from tests.adaptation.world import config, make_speculator

from specblock.adaptation.learning.arms import HEADS
from specblock.adaptation.learning.learner import BETTER, NOT_BETTER, Learner
from specblock.steps import drained

BEFORE = torch.tensor([2.0, 2.2, 1.8, 2.1], dtype=torch.float64)
NOISE = torch.tensor([0.1, -0.1, 0.1, -0.1], dtype=torch.float64)


def judged(learner, monkeypatch, *results):
    """The learner's judgements, one after the other."""
    told = iter(results)

    def judging(asked):
        yield
        return next(told)

    monkeypatch.setattr(learner, "_judge", judging)


def learner_of(**settings):
    return Learner(live_model(), config(heads_lr=1e-2, **settings))


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("change", "outcome", "kept"),
    [(NOISE, NOT_BETTER, True), (NOISE - 0.5, NOT_BETTER, False), (NOISE + 0.5, BETTER, False)],
    ids=["as good", "worse", "better"],
)
def test_only_what_cannot_be_told_is_kept(monkeypatch, change, outcome, kept):
    learner = learner_of()
    judged(learner, monkeypatch, BEFORE, BEFORE + change)
    attempt = drained(learner.attempting(job(HEADS)))
    assert attempt.outcome == outcome
    assert (learner.candidate is not None) is kept
    assert learner.current is learner.start, "nothing decodes that was not adopted"


def test_the_next_update_goes_on_from_it_until_weights_change_hands(monkeypatch):
    twice, once = learner_of(), learner_of()
    judged(twice, monkeypatch, BEFORE, BEFORE + NOISE, BEFORE, BEFORE + 0.5)
    judged(once, monkeypatch, BEFORE, BEFORE + 0.5)
    first = job(HEADS, steps=2)
    drained(twice.attempting(first))
    assert not same(twice.candidate, twice.start)
    last = drained(twice.attempting(first))
    assert last.outcome == BETTER
    alone = drained(once.attempting(first))
    assert not same(last.weights, alone.weights), "it went on from the candidate"
    twice.adopt(last.weights)
    assert twice.candidate is None
    twice.candidate = last.weights
    twice.go_back()
    assert twice.candidate is None


def test_a_candidate_outlasts_the_process(tmp_path):
    speculator = make_speculator(config(folder=tmp_path))
    learner = speculator.adaptation.learner
    learner.candidate = {name: tensor + 1.0 for name, tensor in learner.current.items()}
    speculator.close()
    again = make_speculator(config(folder=tmp_path))
    assert same(again.adaptation.learner.candidate, learner.candidate)
    assert same(again.adaptation.learner.current, learner.current)
    again.adaptation.learner.candidate = None
    again.close()
    last = make_speculator(config(folder=tmp_path))
    assert last.adaptation.learner.candidate is None
    last.close()
