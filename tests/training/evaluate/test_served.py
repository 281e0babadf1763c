"""Serving against training: that sound drafters pass, and that each way to differ is found."""

import dataclasses

import pytest
import torch
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import VOCABULARY, make_drafter, make_target, seeded

from specblock.drafters.registry import make_drafter as drafter_of
from specblock.target.architecture.structure import text_config
from specblock.training.evaluate import served
from specblock.training.evaluate.served import Agreement, compare
from specblock.training.kinds import drafter_config, new_drafter
from specblock.training.recipe import DrafterRecipe


def prompts(count=3):
    generator = seeded(4)
    return [
        torch.randint(3, VOCABULARY, (5 + 20 * i,), generator=generator).tolist()
        for i in range(count)
    ]


def fresh(kind, target):
    """A drafter of a kind, with random layers."""
    recipe = DrafterRecipe(kind=kind, draft_vocab_size=60, slot_rank=4)
    config = drafter_config(target, recipe, make_tokenizer(), "tiny")
    chosen = torch.arange(text_config(target).vocab_size) % 2 == 0
    chosen &= chosen.cumsum(0) <= config.draft_vocab_size
    ids = chosen.nonzero().flatten()
    config = dataclasses.replace(config, draft_vocab_size=len(ids))
    torch.manual_seed(2)
    model = new_drafter(target, config, ids - torch.arange(len(ids)), chosen)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return drafter_of(model.eval())


@pytest.mark.parametrize("kind", ["specblock", "eagle3", "parallel"])
def test_every_kind_is_served_as_it_was_trained(kind):
    target = make_target("llama")
    found = compare(target, fresh(kind, target), prompts(), max_new_tokens=20)
    assert found.texts == 3
    assert found.tokens >= found.rounds > 10
    assert found.feature_error < 1e-4
    assert found.log_prob_error < 1e-3
    assert found.best_agrees > 0.99
    assert found.tau_served == found.tau_played_back
    assert not found.problems()


@pytest.fixture
def world():
    target = make_target("llama")
    return target, make_drafter()


def test_features_of_other_positions_are_found(world, monkeypatch):
    """As if the engine showed the drafter the features one position late."""
    target, drafter = world
    shown = served.Recorder.verified

    def late(self, tree, logits, features, accepted):
        shown(self, tree, logits, features.roll(1, 0) + features.norm(), accepted)

    monkeypatch.setattr(served.Recorder, "verified", late)
    (problem, *_) = compare(target, drafter, prompts(), max_new_tokens=20).problems()
    assert "features differ" in problem


def test_a_drafter_that_counts_positions_otherwise_is_found(world, monkeypatch):
    """Rotary positions that fall behind by one a round in decoding alone."""
    target, drafter = world
    whole, calls = drafter.model.run, []

    def skewed(x, shift, positions, attend, *rest):
        calls.append(len(calls))
        return whole(x, shift, positions + 3 * len(calls), attend, *rest)

    compare_trained = served.trained_log_probs

    def trained(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(drafter.model, "run", whole)
            return compare_trained(*arguments)

    monkeypatch.setattr(drafter.model, "run", skewed)
    monkeypatch.setattr(served, "trained_log_probs", trained)
    monkeypatch.setattr(served, "MOST_LOG_PROB_ERROR", 1e-3)
    problems = compare(target, drafter, prompts(), max_new_tokens=20).problems()
    assert any("On the same features" in problem for problem in problems)


def test_each_difference_has_a_sentence():
    sound = Agreement(3, 40, 100, 0.01, 0.01, 1.0, 2.5, 2.5)
    assert not sound.problems()
    for change, what in (
        ({"feature_error": 0.5}, "50%"),
        ({"log_prob_error": 0.7}, "0.70 nats"),
        ({"tau_served": 1.1}, "1.10 tokens a round"),
    ):
        (problem,) = dataclasses.replace(sound, **change).problems()
        assert what in problem


def test_a_single_round_more_is_a_rounded_tie():
    few = Agreement(2, 23, 48, 0.01, 0.01, 1.0, 48 / 23, 48 / 22)
    assert not few.problems()
    assert dataclasses.replace(few, tau_served=48 / 24).problems()
    many = Agreement(20, 230, 480, 0.01, 0.01, 1.0, 480 / 230, 480 / 220)
    assert many.problems()


def test_answers_that_end_with_the_prefill_have_nothing_to_compare():
    assert not Agreement(1, 0, 0, 0.01, 0.0, 0.0, 0.0, 0.0).problems()
