"""What adaptation has cost and what it has brought, in seconds; and so what it may still try."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Ledger:
    """Seconds that updates cost decoding against seconds of decoding that they saved.

    ``machine`` counts the seconds that updates computed, whoever waited for them or not.

    Updates may cost ``exploration_seconds``, and ``exploration_share`` of the decoding so far, and
    what updates have saved; no more. So whatever the bandit believes, a stream on which nothing
    helps loses its exploration budget and at most the last update's excess over its estimate.
    """

    exploration_seconds: float
    exploration_share: float
    decoded: float = 0.0
    spent: float = 0.0
    saved: float = 0.0
    machine: float = 0.0

    def decode(self, seconds: float, gain: float) -> None:
        """A request of so many seconds, of which the weights in use saved the share ``gain``.

        With t seconds measured it would have taken t / (1 - g) without: t g / (1 - g) are saved.
        """
        self.decoded += seconds
        gain = min(gain, 0.9)
        self.saved += seconds * gain / (1.0 - gain)

    def pay(self, seconds: float, machine: float | None = None) -> None:
        """Requests waited so many seconds for an update that computed ``machine``: as many, unless
        it is given."""
        self.spent += seconds
        self.machine += seconds if machine is None else machine

    @property
    def budget(self) -> float:
        """What may be lost for good by now."""
        return self.exploration_seconds + self.exploration_share * self.decoded

    @property
    def allowance(self) -> float:
        """Seconds that the next update may cost."""
        return self.budget + self.saved - self.spent

    @property
    def balance(self) -> float:
        """Seconds won, or below 0 lost, against never adapting."""
        return self.saved - self.spent

    def to_dict(self) -> dict[str, float]:
        return {name: asdict(self)[name] for name in ("decoded", "spent", "saved", "machine")}

    def restore(self, state: dict[str, float]) -> None:
        self.decoded, self.spent, self.saved = state["decoded"], state["spent"], state["saved"]
        self.machine = state.get("machine", self.spent)  # of states before there was another price


class UpdateCosts:
    """Seconds of an update by arm: measured, and until then in proportion to arms that were.

    ``shares``: relative seconds of the arms. ``first``: seconds of the one with share 1 until any
    has been measured.
    """

    _KEEP = 0.7

    def __init__(self, shares: dict[str, float], first: float):
        self.shares, self.first = shares, first
        self.measured: dict[str, float] = {}

    def observe(self, arm: str, seconds: float) -> None:
        old = self.measured.get(arm, seconds)
        self.measured[arm] = self._KEEP * old + (1 - self._KEEP) * seconds

    def estimate(self, price: float = 1.0) -> dict[str, float]:
        """Seconds by arm, times ``price``."""
        known = [self.measured[arm] / self.shares[arm] for arm in self.measured]
        unit = sum(known) / len(known) if known else self.first
        shares = self.shares.items()
        return {arm: price * self.measured.get(arm, unit * share) for arm, share in shares}
