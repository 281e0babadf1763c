"""Whatever learning does, the output stays; what goes wrong is logged, charged and taken back."""

import logging
from dataclasses import replace

import pytest
import torch
from tests.adaptation.world import config, make_speculator, prompt
from tests.engine.test_lossless import SAMPLERS, assert_same, run
from tests.tiny import make_drafter, make_target

from specblock.adaptation.adapter import Adaptation
from specblock.adaptation.deciding.bandit import GainBandit, replay
from specblock.adaptation.feedback.buffer import Record
from specblock.adaptation.feedback.signals import CONTEXT
from specblock.adaptation.learning.arms import swap
from specblock.adaptation.learning.learner import BETTER, FAILED, Attempt, Job
from specblock.drafters.base import FixedBudget
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.errors import ConfigError
from specblock.kernels.linear import route_linears
from specblock.steps import drained
from specblock.target.model import Target

EAGER = {"policy": "always-full", "min_requests": 2, "heads_lr": 5e-3, "layers_lr": 3e-3}


def serve(speculator, count, length=16, first=0, **settings):
    settings = {"max_new_tokens": length, "ignore_eos": True, **settings}
    return [
        speculator.generate(prompt(number), **settings).token_ids
        for number in range(first, first + count)
    ]


@pytest.mark.parametrize("params", [SAMPLERS["greedy"], SAMPLERS["temperature"]])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_output_is_the_targets_while_weights_are_swapped_every_round(name, params):
    target = Target(make_target(name), (0, 2, 4))
    tokens = prompt(1, 11)
    plain, _ = run(target, None, params, tokens)
    drafter = make_drafter(cached_slots=1, sink=True)
    route_linears(drafter.model)
    adaptation = Adaptation(drafter, config())
    observer = adaptation.observer(tokens)
    generator = torch.Generator().manual_seed(0)
    swaps = 0

    def swap_again(_tokens):
        nonlocal swaps
        swaps += 1
        weights = adaptation.learner.live_weights()
        swap(
            drafter.model,
            {
                name: tensor * (1 + 0.3 * torch.randn(tensor.shape, generator=generator))
                for name, tensor in weights.items()
            },
        )

    observer._on_round = swap_again
    stats, budget = GenerationStats(), FixedBudget(16, 5)
    rounds = decode(target, drafter, budget, tokens, params, len(plain), stats, observer)
    ours = [token for new in rounds for token in new]
    assert swaps == stats.rounds > 5
    assert_same(target, ours, plain, tokens, params)


def test_output_is_the_same_with_adaptation():
    plain = serve(make_speculator(), 7)
    speculator = make_speculator(config(**EAGER))
    found = serve(speculator, 7)
    speculator.close()
    assert found == plain
    status = speculator.adaptation.status()
    assert status["attempts"] >= 1
    assert status["update_seconds"] > 0
    assert status["arms"]["full"]["pulls"] == status["attempts"]
    assert serve(speculator, 1, temperature=0.8, seed=3) == serve(
        make_speculator(), 1, temperature=0.8, seed=3
    )


def test_an_exception_in_the_learner_is_logged_and_charged(monkeypatch, caplog):
    speculator = make_speculator(config(**EAGER))
    adaptation = speculator.adaptation

    class Odd(Exception):
        pass

    def broken(job):
        raise Odd("no more memory")
        yield

    monkeypatch.setattr(adaptation.learner, "attempting", broken)
    before = {n: p.clone() for n, p in speculator.drafter.model.named_parameters()}
    with caplog.at_level(logging.WARNING, logger="specblock"):
        assert serve(speculator, 8) == serve(make_speculator(), 8)
    assert "no more memory" in caplog.text
    assert adaptation.journal.arms["full"]["errors"] == adaptation.journal.attempts >= 1
    (row, *_) = [row for row in adaptation.journal.log if row["event"] == "attempt"]
    assert (row["outcome"], row["error"]) == (FAILED, "Odd: no more memory")
    assert adaptation.ledger.spent > 0
    assert all(torch.equal(p, before[n]) for n, p in speculator.drafter.model.named_parameters())


def test_broken_feedback_does_not_stop_decoding(monkeypatch):
    speculator = make_speculator(config())

    def broken(record):
        raise MemoryError

    monkeypatch.setattr(speculator.adaptation.buffer, "add", broken)
    assert serve(speculator, 2) == serve(make_speculator(), 2)
    assert speculator.adaptation.journal.failures == 2


def test_weights_that_are_not_numbers_never_reach_the_drafter():
    adaptation = make_speculator(config()).adaptation
    weights = {n: torch.full_like(t, float("nan")) for n, t in adaptation.learner.original.items()}
    before = adaptation.learner.current
    adaptation._integrate(
        Attempt("heads", BETTER, 0.1, 0.1, 1.0, weights, {}), "heads", (1.0,) * len(CONTEXT)
    )
    assert adaptation.learner.current is before
    assert adaptation.total_gain == 0.0
    assert adaptation.journal.failures == 1
    assert not adaptation.watch.watching


def poisoned(record, seed):
    """The same text with targets that the target never had."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full_like(record.sequence.target_ids, 7)
    ids[:, 1:] = torch.randint(60, ids[:, 1:].shape, generator=generator).int()
    sequence = replace(record.sequence, target_ids=ids)
    return Record(sequence, record.missed, record.stratum)


def test_poisoned_feedback_is_rolled_back_and_charged():
    speculator = make_speculator(
        config(**EAGER, steps=30, sequences=6, watch_rounds=240, judge_positions=24)
    )
    adaptation, learner = speculator.adaptation, speculator.adaptation.learner
    adaptation.config = adaptation.config.replace(min_requests=1000)
    serve(speculator, 8, 24)
    # a drafter that is good on this traffic
    records = adaptation.buffer._records
    good = drained(learner.attempting(Job("full", [records] * 80, records, 0)))
    assert good.outcome == BETTER
    learner.adopt(good.weights)
    assert adaptation._put_to_use()
    for _ in range(3):
        serve(speculator, 8, 24)
    tau = adaptation.watch.before.mean
    assert tau > 1.3
    live = {n: p.clone() for n, p in speculator.drafter.model.named_parameters()}
    adaptation.buffer._records = [poisoned(r, n) for n, r in enumerate(records)]
    believed = [budget.model for budget in adaptation.budgets]
    adaptation._decide()
    go_back, restored = adaptation.calibrations.go_back, []

    def recorded():
        go_back()
        restored.extend(budget.model for budget in adaptation.budgets)

    adaptation.calibrations.go_back = recorded
    (row,) = [row for row in adaptation.journal.log if row["event"] == "attempt"]
    assert row["outcome"] == BETTER, "poisoned held-out feedback cannot tell"
    assert adaptation.watch.watching
    served = 0
    while adaptation.watch.watching and served < 5:
        serve(speculator, 8, 24)
        served += 1
    assert adaptation.journal.rollbacks == 1
    assert restored
    assert all(now is then for now, then in zip(restored, believed, strict=True))
    assert adaptation.journal.arms["full"]["rollbacks"] == 1
    assert adaptation.journal.log[-1]["lost"] > 0.1
    assert adaptation.journal.log[-2]["gain"] < -0.1
    assert len(adaptation.buffer.training()) < len(records) + 9, "the feedback is gone"
    assert all(
        torch.allclose(p, live[n], atol=1e-6)
        for n, p in speculator.drafter.model.named_parameters()
    )


def test_the_bandits_decisions_follow_from_the_log():
    speculator = make_speculator(config(exploration_seconds=1000.0, horizon_tokens=10**9))
    adaptation = speculator.adaptation
    adaptation.signals.tokens = 10**7  # a long past promises a long future
    serve(speculator, 14)
    log = adaptation.journal.log
    decisions = [row["arm"] for row in log if row["event"] == "decide"]
    assert decisions
    again = [row for row in log if row["event"] in ("decide", "learn")]
    bandit = GainBandit(adaptation.bandit.arms, len(CONTEXT), seed=0, discount=0.99)
    assert replay(bandit, again) == decisions


def test_an_answer_that_was_broken_off_is_learned_from_but_starts_no_update():
    speculator = make_speculator(config(**EAGER))
    for number in range(6):
        chunks = speculator.stream(prompt(number), max_new_tokens=20, ignore_eos=True)
        for _ in range(4):
            next(chunks)
        chunks.close()
    adaptation = speculator.adaptation
    assert len(adaptation.buffer) == 6
    assert adaptation.journal.attempts == 0
    serve(speculator, 1)
    assert adaptation.journal.attempts == 1


def test_only_a_specblock_drafter_adapts():
    with pytest.raises(ConfigError, match="SpecBlock drafter"):
        Adaptation(None, config())
