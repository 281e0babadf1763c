"""What decoding says about the drafter's health, for free: the bandit's context.

Everything comes from trees that were drafted and verified anyway. The drafter's loss is read off a
tree: at a visited node the probability it gave to what the target drew, or, where the target
drew none of the node's children, all the probability that it had left for others.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from specblock.drafters.objectives.losses import RANK_EDGES
from specblock.tree.accept import Acceptance
from specblock.tree.draft_tree import DraftTree
from specblock.tree.source import Source

CONTEXT = ("bias", "tau_drop", "loss_rise", "loss", "rank_error", "feedback", "traffic")
_LEAST = 1e-4  # probability: one impossible token must not outweigh a request
_FAST, _SLOW = 0.8, 0.98  # of what is known, with every request: some 5 and some 50 are remembered


@dataclass(frozen=True)
class RoundSignal:
    """Sums over the visited nodes of a round that had children of the network's.

    ``tokens`` of the round; ``nodes``; ``loss`` in nats; ``ranked`` nodes whose predicted rank is
    known, and their ``rank_error`` in buckets.
    """

    tokens: int
    nodes: int
    loss: float
    ranked: int
    rank_error: float


def round_signal(tree: DraftTree, accepted: Acceptance) -> RoundSignal:
    """Read a verified tree (to the host)."""
    log_probs, buckets = tree.log_probs.tolist(), tree.buckets.tolist()
    sources = [Source(source) for source in tree.sources.tolist()]
    nodes, loss, ranked, error = 0, 0.0, 0, 0.0
    for visited in accepted.trials:
        children = [trial for trial in visited if sources[trial[0]].from_network]
        if not children:
            continue
        nodes += 1
        ordered = sorted(children, key=lambda child: -log_probs[child[0]])
        place = next((rank for rank, (_, hit) in enumerate(ordered, 1) if hit), None)
        claims = [math.exp(log_probs[child]) for child, _ in ordered]
        claimed = 1.0 - sum(claims) if place is None else claims[place - 1]
        loss -= math.log(max(claimed, _LEAST))
        bucket = len(RANK_EDGES) if place is None else sum(place > edge for edge in RANK_EDGES)
        best = ordered[0][0]
        if sources[best] is Source.NETWORK:
            ranked += 1
            error += abs(bucket - buckets[best])
    return RoundSignal(len(accepted.tokens), nodes, loss, ranked, error)


@dataclass
class Average:
    """A fast and a slow exponential mean over requests; None before the first."""

    fast: float | None = None
    slow: float | None = None

    def add(self, value: float) -> None:
        if self.fast is None:
            self.fast = self.slow = value
        self.fast += (1 - _FAST) * (value - self.fast)
        self.slow += (1 - _SLOW) * (value - self.slow)


@dataclass
class Signals:
    """Running figures over requests.

    ``tokens`` decoded in all; ``seconds_per_token`` of decoding; ``asked``: the share of rounds
    with nodes of the network's, which are all that an update can make better; ``fresh_tokens``:
    answer tokens of feedback since the last update.
    """

    tau: Average = field(default_factory=Average)
    loss: Average = field(default_factory=Average)
    rank_error: Average = field(default_factory=Average)
    seconds_per_token: Average = field(default_factory=Average)
    asked: Average = field(default_factory=Average)
    tokens: int = 0
    fresh_tokens: int = 0
    fresh_requests: int = 0

    def add(self, rounds: list[RoundSignal], new_tokens: int, seconds: float) -> None:
        """One request: its rounds, the tokens kept and the seconds of its decoding."""
        if not rounds:
            return
        self.tau.add(sum(r.tokens for r in rounds) / len(rounds))
        self.asked.add(sum(r.nodes > 0 for r in rounds) / len(rounds))
        nodes = sum(r.nodes for r in rounds)
        if nodes:
            self.loss.add(sum(r.loss for r in rounds) / nodes)
        ranked = sum(r.ranked for r in rounds)
        if ranked:
            self.rank_error.add(sum(r.rank_error for r in rounds) / ranked)
        self.seconds_per_token.add(seconds / max(1, new_tokens))
        self.tokens += new_tokens
        self.fresh_tokens += new_tokens
        self.fresh_requests += 1

    def updated(self) -> None:
        """An update has used the feedback so far."""
        self.fresh_tokens = self.fresh_requests = 0

    @property
    def asked_share(self) -> float:
        """``asked`` of late; 1 before the first request."""
        return 1.0 if self.asked.fast is None else self.asked.fast

    def horizon(self, most: int) -> int:
        """Tokens that a gain is expected to serve: as many as came so far, at most ``most``.

        Of traffic of unknown length the median of what remains is what has passed.
        """
        return min(self.tokens, most)

    def context(self, most: int) -> tuple[float, ...]:
        """The values of :data:`CONTEXT`, each of about unit size; ``most`` as in `horizon`."""
        tau, loss = self.tau, self.loss
        drop = 0.0 if tau.fast is None else 1.0 - tau.fast / tau.slow
        rise = 0.0 if loss.fast is None else loss.fast - loss.slow
        return (
            1.0,
            _clamp(5.0 * drop),
            _clamp(2.0 * rise),
            _clamp((loss.fast or 0.0) - 1.0),
            _clamp((self.rank_error.fast or 0.0) - 1.0),
            _clamp(math.log2(1.0 + self.fresh_tokens / 1000.0) - 1.0),
            _clamp(math.log10(1.0 + self.horizon(most)) - 3.0),
        )

    def to_dict(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_dict(state: dict) -> Signals:
        if "tau" not in state:
            raise ValueError("there is no tau")
        names = ("tau", "loss", "rank_error", "seconds_per_token", "asked")
        averages = {name: Average(**state.get(name, {})) for name in names}
        return Signals(**{**state, **averages})


def _clamp(value: float) -> float:
    return max(-2.0, min(2.0, value))
