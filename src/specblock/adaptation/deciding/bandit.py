"""Which update to make, if any: Thompson sampling on what an update gains, at its known price.

For every arm the relative gain g of an update (the share of decoding seconds that it saves) is
linear in the context x, with Gaussian noise of unknown variance:

    g = theta . x + e,   e ~ N(0, s2),   theta | s2 ~ N(m0, s2 P0^-1),   s2 ~ InvGamma(a0, b0).

The value of an arm in seconds, ``scale * g - cost``, is an affine function of g whose coefficients
(decoding seconds ahead, seconds of an update) are measured, so only g has to be learned. Each
decision draws theta from every arm's posterior and takes the best value; skipping is worth 0
without any doubt. The sums of the posterior are discounted with every decision, the prior is not:
what was learned long ago fades and the arm is tried again. Derivation: ``docs/adaptation.md``.

Pure: decision number n draws from a generator keyed by (seed, n), so the same experience leads to
the same decisions, in the same process or a resumed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SKIP = "skip"


@dataclass(frozen=True)
class Prior:
    """What is believed of an arm before its first pull, in units of relative gain.

    ``gain``: mean of the intercept; ``spread`` its standard deviation, ``slope`` that of the other
    coefficients; ``noise``: standard deviation of a measured gain; ``weight``: pulls' worth of
    belief in the noise.
    """

    gain: float = 0.02
    spread: float = 0.04
    slope: float = 0.02
    noise: float = 0.03
    weight: float = 4.0


class LinearGain:
    """The posterior of one arm (normal, inverse gamma), from discounted sums."""

    def __init__(self, dimension: int, prior: Prior):
        spread = np.full(dimension, prior.slope)
        spread[0] = prior.spread
        self._mean0 = np.zeros(dimension)
        self._mean0[0] = prior.gain
        self._precision0 = np.diag((prior.noise / spread) ** 2)
        self._shape0 = prior.weight / 2
        self._rate0 = self._shape0 * prior.noise**2
        self.xx = np.zeros((dimension, dimension))
        self.xy = np.zeros(dimension)
        self.yy, self.count = 0.0, 0.0
        self._posterior: tuple[np.ndarray, np.ndarray, float, float] | None = None

    def learn(self, x: np.ndarray, gain: float) -> None:
        self.xx += np.outer(x, x)
        self.xy += x * gain
        self.yy += gain * gain
        self.count += 1.0
        self._posterior = None

    def fade(self, keep: float) -> None:
        """Let earlier observations count for less."""
        self.xx *= keep
        self.xy *= keep
        self.yy, self.count = self.yy * keep, self.count * keep
        self._posterior = None

    def posterior(self) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Mean m, covariance P^-1 in units of the noise's variance, shape a and rate b."""
        if self._posterior is None:
            precision = self._precision0 + self.xx
            drive = self._precision0 @ self._mean0 + self.xy
            spread = np.linalg.inv(precision)  # the prior keeps it well conditioned
            mean = spread @ drive
            quadratic = self.yy + self._mean0 @ self._precision0 @ self._mean0 - mean @ drive
            rate = self._rate0 + max(0.0, quadratic) / 2
            self._posterior = mean, spread, self._shape0 + self.count / 2, rate
        return self._posterior

    def draw(self, x: np.ndarray, random: np.random.Generator) -> float:
        """A gain at ``x`` under coefficients drawn from the posterior."""
        mean, spread, shape, rate = self.posterior()
        variance = rate / random.standard_gamma(shape)
        # theta . x given the variance is normal: one number instead of the whole vector
        deviation = np.sqrt(variance * (x @ spread @ x))
        return float(mean @ x + deviation * random.standard_normal())

    def expected(self, x: np.ndarray) -> float:
        return float(self.posterior()[0] @ x)


@dataclass(frozen=True)
class Decision:
    """``arm`` (or :data:`SKIP`) and the sampled value in seconds of all arms, affordable or not."""

    arm: str
    values: dict[str, float]
    number: int


class GainBandit:
    """Chooses among ``arms`` and skipping.

    Args:
        dimension: of the contexts; their first entry is 1.
        discount: what a decision leaves of the weight of earlier experience.
        prior: of all arms but those that have their own in ``priors``.
    """

    def __init__(
        self,
        arms: Sequence[str],
        dimension: int,
        *,
        seed: int = 0,
        discount: float = 0.99,
        prior: Prior | None = None,
        priors: Mapping[str, Prior] | None = None,
    ):
        self.arms, self.dimension, self.seed, self.discount = tuple(arms), dimension, seed, discount
        own = priors or {}
        self.models = {
            arm: LinearGain(dimension, own.get(arm, prior or Prior())) for arm in self.arms
        }
        self.decisions = 0

    def decide(
        self,
        context: Sequence[float],
        scale: float,
        costs: Mapping[str, float],
        allowance: float = float("inf"),
        among: Sequence[str] | None = None,
    ) -> Decision:
        """Choose an arm.

        Args:
            scale: seconds of decoding that lie ahead and that a gain would shorten.
            costs: seconds of an update by arm.
            allowance: arms that cost more seconds than this are not affordable now.
            among: the arms that there are now; None: all.
        """
        x, number = np.asarray(context, dtype=float), self.decisions
        random = np.random.default_rng((self.seed, number))
        # every arm draws, so that what is affordable does not shift the others' numbers
        values = {arm: scale * self.models[arm].draw(x, random) - costs[arm] for arm in self.arms}
        affordable = [arm for arm in among or self.arms if costs[arm] <= allowance]
        best = max(affordable, key=values.get, default=SKIP)
        self.decisions += 1
        for model in self.models.values():
            model.fade(self.discount)
        return Decision(best if values.get(best, 0.0) > 0 else SKIP, values, number)

    def learn(self, arm: str, context: Sequence[float], gain: float) -> None:
        """What an update under ``context`` gained; a loss is a negative gain."""
        self.models[arm].learn(np.asarray(context, dtype=float), gain)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        sums = {
            arm: {"xx": m.xx.tolist(), "xy": m.xy.tolist(), "yy": m.yy, "count": m.count}
            for arm, m in self.models.items()
        }
        return {"decisions": self.decisions, "sums": sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_dict` of a bandit with the same arms, dimension and seed."""
        self.decisions = int(state["decisions"])
        for arm, sums in state["sums"].items():
            model = LinearGain.__new__(LinearGain)
            model.__dict__.update(self.models[arm].__dict__)
            model.xx, model.xy = np.array(sums["xx"], float), np.array(sums["xy"], float)
            model.yy, model.count, model._posterior = float(sums["yy"]), float(sums["count"]), None
            self.models[arm] = model


def replay(bandit: GainBandit, log: Iterable[Mapping[str, Any]]) -> list[str]:
    """The decisions that follow from a log, in order.

    Rows are ``{"event": "decide", "context", "scale", "costs", "allowance", "among"}`` and
    ``{"event": "learn", "arm", "context", "gain"}``, as an adaptation logs them.
    """
    chosen = []
    for row in log:
        if row["event"] == "decide":
            asked = row["context"], row["scale"], row["costs"], row["allowance"]
            chosen.append(bandit.decide(*asked, row.get("among")).arm)
        else:
            bandit.learn(row["arm"], row["context"], row["gain"])
    return chosen
