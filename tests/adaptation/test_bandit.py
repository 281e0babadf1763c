"""The bandit against its formulas, a simulated world with known gains, and its own log."""

import json
import math

import numpy as np
import pytest

from specblock.adaptation.deciding.bandit import SKIP, GainBandit, LinearGain, Prior, replay
from specblock.adaptation.deciding.ledger import Ledger, UpdateCosts
from specblock.adaptation.replay.simulation import World, simulate_bandit, simulate_fixed

SEEDS = range(100)
COSTS = {"heads": 2.0, "full": 6.0}
# Gains depend on the context: worth an update now and then, a loss on average.
CHANGING = World(({"heads": (0.01, 0.03, 0.0), "full": (0.03, 0.05, 0.01)},), COSTS)
HOPELESS = World(({"heads": (-0.01, 0.0, 0.0), "full": (-0.03, 0.0, 0.0)},), COSTS)
SHIFTING = World(
    (
        {"heads": (0.10, 0.0, 0.0), "full": (0.02, 0.0, 0.0)},
        {"heads": (-0.02, 0.0, 0.0), "full": (0.16, 0.0, 0.0)},
    ),
    COSTS,
    regime_length=100,
)


def test_the_posterior_is_that_of_the_textbook():
    random = np.random.default_rng(0)
    prior = Prior()
    model = LinearGain(3, prior)
    xs, gains = random.standard_normal((20, 3)), random.standard_normal(20) * 0.05
    for x, gain in zip(xs, gains, strict=True):
        model.learn(x, gain)
    precision0 = np.diag((prior.noise / np.array([prior.spread, prior.slope, prior.slope])) ** 2)
    mean0 = np.array([prior.gain, 0.0, 0.0])
    precision = precision0 + xs.T @ xs
    mean = np.linalg.inv(precision) @ (precision0 @ mean0 + xs.T @ gains)
    residual = ((gains - xs @ mean) ** 2).sum() + (mean - mean0) @ precision0 @ (mean - mean0)
    found, spread, shape, rate = model.posterior()
    np.testing.assert_allclose(found, mean)
    np.testing.assert_allclose(spread, np.linalg.inv(precision), rtol=1e-6)
    assert shape == pytest.approx(prior.weight / 2 + 10)
    assert rate == pytest.approx(prior.weight / 2 * prior.noise**2 + residual / 2)
    x = np.array([1.0, 0.5, -0.5])
    draws = [model.draw(x, np.random.default_rng(seed)) for seed in range(4000)]
    assert np.mean(draws) == pytest.approx(mean @ x, abs=0.003)
    wanted = rate / (shape - 1) * (x @ np.linalg.inv(precision) @ x)  # variance of the t
    assert np.var(draws) == pytest.approx(wanted, rel=0.15)


def test_experience_fades_to_the_prior():
    model, fresh, x = LinearGain(2, Prior()), LinearGain(2, Prior()), np.array([1.0, 1.0])
    for _ in range(50):
        model.learn(x, 0.3)
    assert model.expected(x) > 0.25
    for _ in range(2000):
        model.fade(0.99)
    assert model.expected(x) == pytest.approx(fresh.expected(x), abs=1e-4)


def test_what_is_too_dear_is_not_chosen_and_shifts_no_draw():
    free = GainBandit(("heads", "full"), 1, seed=5)
    tight = GainBandit(("heads", "full"), 1, seed=5)
    for _ in range(30):
        both = free.decide((1.0,), 1000.0, COSTS)
        cheap = tight.decide((1.0,), 1000.0, COSTS, allowance=3.0)
        assert cheap.values == both.values
        assert cheap.arm in (SKIP, "heads")
    assert tight.decide((1.0,), 1000.0, COSTS, allowance=0.5).arm == SKIP
    assert free.decide((1.0,), 0.0, COSTS).arm == SKIP, "without traffic nothing pays"


def test_the_same_log_leads_to_the_same_decisions():
    bandit, log, chosen = GainBandit(("heads", "full"), 3, seed=9), [], []
    random = np.random.default_rng(1)
    for context in CHANGING.contexts(120, 3):
        row = {"context": context.tolist(), "scale": 150.0, "costs": COSTS, "allowance": 9.0}
        arm = bandit.decide(*row.values()).arm
        log.append({"event": "decide", **row})
        chosen.append(arm)
        if arm != SKIP:
            gain = float(0.02 + 0.03 * random.standard_normal())
            bandit.learn(arm, context, gain)
            log.append({"event": "learn", "arm": arm, "context": context.tolist(), "gain": gain})
    assert len(set(chosen)) == 3
    stored = json.loads(json.dumps(log))
    assert replay(GainBandit(("heads", "full"), 3, seed=9), stored) == chosen
    assert replay(GainBandit(("heads", "full"), 3, seed=10), stored) != chosen
    # and from a saved state in the middle
    half = len(log) // 2
    first = GainBandit(("heads", "full"), 3, seed=9)
    begun = replay(first, stored[:half])
    second = GainBandit(("heads", "full"), 3, seed=9)
    second.restore(json.loads(json.dumps(first.to_dict())))
    assert begun + replay(second, stored[half:]) == chosen


def test_regret_grows_ever_more_slowly_over_100_seeds():
    runs = [simulate_bandit(CHANGING, 160, seed, discount=1.0) for seed in SEEDS]
    regret = np.stack([run.regret for run in runs])
    mean = regret.mean(0)
    quarters = np.diff(mean[[0, 39, 79, 119, 159]])
    assert quarters[-1] < 0.5 * quarters[0], quarters
    growth = math.log(mean[159] / mean[39]) / math.log(4)
    assert growth < 0.85, f"regret grows like T^{growth:.2f}"
    never = np.mean([simulate_fixed(CHANGING, 160, seed, SKIP).regret[-1] for seed in SEEDS])
    always = [
        np.mean([simulate_fixed(CHANGING, 160, seed, arm).regret[-1] for seed in SEEDS])
        for arm in COSTS
    ]
    assert mean[-1] < 0.7 * min(never, *always)


def test_never_worse_than_never_by_more_than_the_budget_over_100_seeds():
    count, budget, share = 40, 8.0, 0.005
    for world in (HOPELESS, CHANGING, SHIFTING):
        harms = [
            -world.scale * world.gain(arm, context, number)
            for seed in SEEDS
            for number, context in enumerate(world.contexts(count, seed))
            for arm in COSTS
        ]
        # what one update may do beyond its price is not known before it is done
        harm = max(0.0, *harms)
        allowed = budget + share * world.decoding * np.arange(1, count + 1) + harm
        worst = np.zeros(count)
        for seed in SEEDS:
            run = simulate_bandit(
                world, count, seed, exploration_seconds=budget, exploration_share=share
            )
            worst = np.minimum(worst, run.values.cumsum() + allowed)
        assert worst.min() == 0.0, worst.min()


def test_where_nothing_helps_it_stops_trying():
    runs = [simulate_bandit(HOPELESS, 80, seed) for seed in SEEDS]
    late = np.mean([sum(arm != SKIP for arm in run.arms[40:]) for run in runs])
    assert late < 5
    assert np.mean([run.values.sum() for run in runs]) > -40


def test_it_follows_a_shift():
    runs = [simulate_bandit(SHIFTING, 160, seed, discount=0.97) for seed in SEEDS[:25]]
    for start, arm in ((50, "heads"), (130, "full")):
        share = np.mean([[a == arm for a in run.arms[start : start + 30]] for run in runs])
        assert share > 0.6, (arm, share)


def test_the_ledger_allows_what_it_says():
    ledger = Ledger(5.0, 0.01)
    assert ledger.allowance == 5.0
    ledger.decode(100.0, 0.2)  # would have taken 125 s
    assert ledger.saved == pytest.approx(25.0)
    ledger.pay(10.0)
    assert ledger.allowance == pytest.approx(5.0 + 1.0 + 25.0 - 10.0)
    assert ledger.balance == pytest.approx(15.0)
    again = Ledger(5.0, 0.01)
    again.restore(ledger.to_dict())
    assert again == ledger


def test_costs_are_measured_and_lend_themselves_to_other_arms():
    costs = UpdateCosts({"heads": 1.0, "full": 2.0}, first=3.0)
    assert costs.estimate() == {"heads": 3.0, "full": 6.0}
    costs.observe("heads", 1.0)
    assert costs.estimate() == {"heads": 1.0, "full": 2.0}
    costs.observe("heads", 2.0)
    assert costs.estimate()["heads"] == pytest.approx(1.3)
    costs.observe("full", 7.0)
    assert costs.estimate()["full"] == 7.0
