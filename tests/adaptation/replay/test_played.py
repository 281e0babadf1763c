"""A playback does what decoding did, round by round, and costs what the table says."""

import copy

import pytest
import torch
from tests.adaptation.world import config, prompt
from tests.engine.test_speculator import make_tokenizer
from tests.tiny import make_drafter, make_target

from specblock.adaptation.day0 import empty_drafter
from specblock.adaptation.doorway import adapt as start_adapting
from specblock.adaptation.replay.contenders import Name, names_of
from specblock.adaptation.replay.played import KnownAnswer, Played, Reading, prompt_seconds
from specblock.adaptation.replay.run import compare_policies
from specblock.adaptation.replay.stream import Plan, Request
from specblock.budget.controller import BudgetController
from specblock.budget.costs import CostTable
from specblock.config import GenerationConfig
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError
from specblock.target.model import Target
from specblock.training.data.answers import Answer

COSTS = CostTable({1: 1.0, 8: 1.1, 64: 2.0}, {1: 0.05}, {1: 0.05}, 0.01)
LENGTH = 24
SHORT = GenerationConfig(max_new_tokens=LENGTH, ignore_eos=True)
COUNT = 8


def speculator(*, empty=False):
    network = make_target("llama")
    drafter = make_drafter(cached_slots=1, slot_rank=4, sink=True)
    if empty:
        drafter = empty_drafter(network, make_tokenizer())
    target = Target(network, drafter.feature_layers)
    return Speculator(
        target, make_tokenizer(), drafter, BudgetController(COSTS), COSTS,
        BudgetController(COSTS), TextCopies(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def known():
    own = speculator()
    found = []
    for number in range(COUNT):
        said = own.generate(prompt(number % 5, 12), SHORT, use_drafter=False).token_ids
        answer = Answer(f"r{number}", prompt(number % 5, 12), said, stopped=False)
        found.append(KnownAnswer(f"r{number}", "t", answer))
    return found


@pytest.mark.parametrize("policy", ["never", "memory"])
def test_rounds_are_those_of_decoding(known, policy):
    requests = [Request(one.id, "t", one.answer.prompt_ids) for one in known]
    live = compare_policies(speculator(), requests, Plan((policy,)), adapt=config(), config=SHORT)
    played = compare_policies(speculator(), known, Plan((policy,)), adapt=config())
    for decoded, row in zip(live["rows"], played["rows"], strict=True):
        assert (row["rounds"], row["round_tokens"]) == (decoded["rounds"], decoded["round_tokens"])
    assert played["policies"][policy]["accepted_length"] > 1
    assert played["settings"]["played_back"]
    assert not live["settings"]["played_back"]


def test_seconds_are_the_tables(known):
    played = compare_policies(speculator(), known, Plan(("plain", "never")), adapt=config())
    prompt_tokens = len(known[0].answer.prompt_ids)
    for row in played["rows"]:
        plain = prompt_seconds(COSTS, prompt_tokens) + LENGTH - 1
        if row["policy"] == "plain":
            assert row["seconds"] == pytest.approx(plain)
            assert (row["rounds"], row["tokens"]) == (LENGTH - 1, LENGTH)
        else:
            assert 0 < row["seconds"] <= plain + 0.7 + 0.02 * LENGTH, "what a text may lose"
    assert prompt_seconds(COSTS, 300) == pytest.approx(
        2 * COSTS.target_seconds(128) + COSTS.target_seconds(44)
    )


def test_learning_runs_for_real_in_gaps_and_at_once(known):
    adapt = config(min_requests=2, exploration_seconds=60.0)
    policies = ("never", "always-full", "always-full+at-once", "lookup")
    report = compare_policies(speculator(), known, Plan(policies, (0.05, 0.9)), adapt=adapt)
    names = set(report["policies"])
    assert names == {
        "never", "always-full at 0.05", "always-full at 0.9", "always-full+at-once",
        "lookup",
    }  # fmt: skip
    idle = report["policies"]["always-full at 0.05"]
    assert idle["updates"] >= 1
    assert idle["learned_seconds"] > 0
    at_once = report["policies"]["always-full+at-once"]
    assert at_once["updates"] >= 1
    assert at_once["learned_seconds"] == 0
    assert set(report["loads"]) == {"0.05", "0.9"}
    assert "always-full at 0.9" not in report["loads"]["0.05"]
    for row in report["loads"]["0.05"].values():
        assert 0 < row["mean"] <= row["p95"] <= row["day"]


def test_a_drafter_from_nothing_is_one_of_the_policies(known):
    plan = Plan(("never", "day0"), (0.05,))
    report = compare_policies(speculator(empty=True), known, plan, adapt=config())
    rows = {name: row["round_tokens"] for name, row in _by_policy(report["rows"]).items()}
    assert rows["day0 at 0.05"] > 0
    with pytest.raises(ConfigError, match="other layers"):
        compare_policies(speculator(), known, plan, adapt=config())


def _by_policy(rows):
    return {row["policy"]: row for row in rows}


def test_an_answer_says_the_same_to_a_learner(known):
    """The feedback of a playback is that of decoding."""
    adapt = config(policy="always-full", min_requests=100)
    own = speculator()
    played = Played(own, Name("always-full"), Reading(own, adapt.target_top), adapt, None)
    live = start_adapting(speculator(), copy.deepcopy(adapt))
    for one in known[:2]:
        played.answer(one)
        live.generate(one.answer.prompt_ids, SHORT)
    assert len(played.adaptation.buffer) == len(live.adaptation.buffer) == 2
    for ours, theirs in zip(
        played.adaptation.buffer._records, live.adaptation.buffer._records, strict=True
    ):
        assert ours.stratum == theirs.stratum
        assert torch.equal(ours.sequence.tokens, theirs.sequence.tokens)
        assert torch.equal(ours.sequence.start, theirs.sequence.start)
        assert torch.equal(ours.sequence.usable, theirs.sequence.usable)
        torch.testing.assert_close(
            ours.sequence.target_probabilities, theirs.sequence.target_probabilities,
            atol=1e-3, rtol=1e-2,
        )  # fmt: skip


def test_names_and_loads_are_checked(known):
    assert [str(name) for name in names_of(["never", "bandit", "bandit+at-once"], [0.3, 0.6])] == [
        "never", "bandit at 0.3", "bandit at 0.6", "bandit+at-once",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="did you mean 'day0'"):
        names_of(["day1"], [])
    for loads in ((0.0,), (1.0,), (0.3, 0.3)):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            compare_policies(speculator(), known, Plan(("never",), loads), adapt=config())
    with pytest.raises(ConfigError, match="--answers"):
        compare_policies(speculator(), known, Plan(("never",), poison=(0, 1)), adapt=config())
