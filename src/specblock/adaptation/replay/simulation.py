"""A world with known gains, to see what a policy is worth before it meets a machine.

Contexts wander; every arm's true relative gain is linear in them, changes with the regime, and is
observed with noise; every pull costs known seconds. A decision's scale is what the gain is worth.
No model in sight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from specblock.adaptation.deciding.bandit import SKIP, GainBandit
from specblock.adaptation.deciding.ledger import Ledger


@dataclass(frozen=True)
class World:
    """``coefficients[regime][arm]`` float [d] of the true gains; the regime changes every
    ``regime_length`` decisions. ``costs`` in seconds; ``scale``: seconds of decoding that a gain
    shortens; ``noise``: of observed gains; ``decoding``: seconds between two decisions."""

    coefficients: tuple[Mapping[str, tuple[float, ...]], ...]
    costs: Mapping[str, float]
    scale: float = 100.0
    noise: float = 0.02
    decoding: float = 20.0
    regime_length: int = 1_000_000

    @property
    def dimension(self) -> int:
        return len(next(iter(self.coefficients[0].values())))

    def gain(self, arm: str, context: np.ndarray, number: int) -> float:
        """The true gain of ``arm`` at decision ``number``."""
        regime = (number // self.regime_length) % len(self.coefficients)
        return float(np.dot(self.coefficients[regime][arm], context))

    def value(self, arm: str, context: np.ndarray, number: int) -> float:
        """Its true value in seconds; skipping is worth 0."""
        if arm == SKIP:
            return 0.0
        return self.scale * self.gain(arm, context, number) - self.costs[arm]

    def contexts(self, count: int, seed: int) -> np.ndarray:
        """float [count, d]: 1, and an autoregressive wander of unit size in the other entries."""
        random = np.random.default_rng((seed, 1))
        steps = random.standard_normal((count, self.dimension)) * 0.6
        found = np.ones((count, self.dimension))
        state = np.zeros(self.dimension - 1)
        for number in range(count):
            state = 0.8 * state + steps[number, 1:]
            found[number, 1:] = np.clip(state, -2, 2)
        return found


@dataclass(frozen=True)
class Run:
    """What a policy did: true ``values`` of its choices in seconds, and ``best`` of the oracle's,
    who knows the gains, float [T]; ``arms`` chosen; ``ledger`` where the policy keeps one."""

    values: np.ndarray
    best: np.ndarray
    arms: list[str]
    ledger: Ledger | None = None

    @property
    def regret(self) -> np.ndarray:
        """Cumulative seconds behind the oracle, float [T]."""
        return (self.best - self.values).cumsum()


def simulate_bandit(
    world: World,
    count: int,
    seed: int,
    *,
    exploration_seconds: float = 5.0,
    exploration_share: float = 0.005,
    discount: float = 0.99,
) -> Run:
    """The bandit and its ledger, as an adaptation runs them, over ``count`` decisions."""
    bandit = GainBandit(tuple(world.costs), world.dimension, seed=seed, discount=discount)
    ledger = Ledger(exploration_seconds, exploration_share)
    random = np.random.default_rng((seed, 2))

    def choose(number: int, context: np.ndarray) -> str:
        ledger.decode(world.decoding, 0.0)
        arm = bandit.decide(context, world.scale, world.costs, ledger.allowance).arm
        if arm != SKIP:
            seen = world.gain(arm, context, number) + world.noise * random.standard_normal()
            bandit.learn(arm, context, seen)
            ledger.pay(world.costs[arm])
            ledger.saved += world.scale * world.gain(arm, context, number)
        return arm

    return _run(world, count, seed, choose, ledger)


def simulate_fixed(world: World, count: int, seed: int, arm: str) -> Run:
    """Always the same arm, or never any with :data:`SKIP`, over the same contexts."""
    return _run(world, count, seed, lambda _number, _context: arm)


def _run(
    world: World,
    count: int,
    seed: int,
    choose: Callable[[int, np.ndarray], str],
    ledger: Ledger | None = None,
) -> Run:
    values, best, arms = np.zeros(count), np.zeros(count), []
    for number, context in enumerate(world.contexts(count, seed)):
        arm = choose(number, context)
        arms.append(arm)
        values[number] = world.value(arm, context, number)
        best[number] = max(world.value(other, context, number) for other in (SKIP, *world.costs))
    return Run(values, best, arms, ledger)
