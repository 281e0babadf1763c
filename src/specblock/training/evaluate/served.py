"""Whether a drafter is served as it was trained: the same texts through both paths.

A drafter can be accurate in training and accepted hardly ever in use: features of other positions,
rotary positions that count from elsewhere, a cache that holds what training never saw. Here texts
are decoded by the engine, and what was shown to the drafter and said by it is recorded. Then each
text goes through the target and through the training forward in one piece, and decoding is played
back on it. Every step that can differ is compared by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from specblock.drafters.base import Drafter, FixedBudget
from specblock.engine.rounds import decode
from specblock.engine.statistics import GenerationStats
from specblock.target.model import Target
from specblock.training.data.answers import Answer
from specblock.training.evaluate.simulate import simulate
from specblock.training.features.reader import FeatureReader
from specblock.training.kinds import training_kind
from specblock.tree.accept import Acceptance
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams

# what rounding in half precision explains; a misplaced layer or position is far beyond
MOST_FEATURE_ERROR = 0.1
MOST_LOG_PROB_ERROR = 0.1
MOST_TAU_ERROR = 0.03


@dataclass
class Recorder:
    """A :class:`specblock.engine.rounds.RoundObserver` that keeps what serving shows and drafts.

    ``features``, ``tokens``: the pairs, by arrival. ``drafted``: for every round the number of
    pairs before it, and tokens (target ids) and log-probabilities of the root's children.
    """

    features: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    drafted: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def prefilled(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's pairs."""
        self.features.append(features.clone())
        self.tokens += tokens.tolist()

    def verified(
        self, tree: DraftTree, logits: Tensor, features: Tensor, accepted: Acceptance
    ) -> None:
        """What the round drafted, then the pairs it added."""
        first = tree.parents == 0
        self.drafted.append((len(self.tokens), tree.tokens[first], tree.log_probs[first]))
        self.features.append(features.clone())
        self.tokens += accepted.tokens


@dataclass(frozen=True)
class Agreement:
    """How far serving and training agree, over all texts.

    Attributes:
        texts, rounds, tokens: what was decoded.
        feature_error: largest distance of a position's features from those of one forward, as a
            share of their norm.
        log_prob_error: mean distance (nats) of the first drafted tokens' log-probabilities from
            those of the training forward on the same features.
        best_agrees: share of rounds whose best first token is the training forward's.
        tau_served, tau_played_back: mean accepted length, bonus token included.
    """

    texts: int
    rounds: int
    tokens: int
    feature_error: float
    log_prob_error: float
    best_agrees: float
    tau_served: float
    tau_played_back: float

    def problems(self) -> list[str]:
        """What differs by more than rounding does, a sentence each."""
        found = []
        if self.feature_error > MOST_FEATURE_ERROR:
            found.append(
                f"The target's features differ by {self.feature_error:.0%} between decoding and "
                "one forward: look at its cache, positions and attention mask."
            )
        if self.log_prob_error > MOST_LOG_PROB_ERROR:
            found.append(
                f"On the same features the drafter's first tokens differ by "
                f"{self.log_prob_error:.2f} nats between decoding and training: look at its "
                "cache and positions."
            )
        # over few rounds, one more because of a rounded tie is beyond the usual share
        allowed = max(MOST_TAU_ERROR, 1.01 / max(1, self.rounds))
        if abs(self.tau_served - self.tau_played_back) > allowed * self.tau_played_back:
            found.append(
                f"Decoding accepts {self.tau_served:.2f} tokens a round where the same answers "
                f"played back give {self.tau_played_back:.2f}: look at the verification."
            )
        return found


@dataclass
class _Tally:
    """Sums over texts, on the way to an :class:`Agreement`."""

    texts: int = 0
    rounds: int = 0
    tokens: int = 0
    played_rounds: int = 0
    played_tokens: int = 0
    feature_error: float = 0.0
    distances: list[float] = field(default_factory=list)
    hits: int = 0

    def agreement(self) -> Agreement:
        return Agreement(
            texts=self.texts,
            rounds=self.rounds,
            tokens=self.tokens,
            feature_error=self.feature_error,
            log_prob_error=sum(self.distances) / max(1, len(self.distances)),
            best_agrees=self.hits / max(1, self.rounds),
            tau_served=self.tokens / max(1, self.rounds),
            tau_played_back=self.played_tokens / max(1, self.played_rounds),
        )


@torch.no_grad()
def compare(
    network: nn.Module,
    drafter: Drafter,
    prompts: list[list[int]],
    *,
    max_new_tokens: int = 48,
    nodes: int = 24,
    leaves: int = 8,
) -> Agreement:
    """Answer ``prompts`` (token ids) greedily with ``drafter``, then do it again as training does.

    Nothing stops at an end of turn. The budget is fixed, so that no clock decides anything.

    Args:
        network: the target. max_new_tokens: of each answer, to the end of its last round.

    Raises:
        ContextError: a prompt is empty or leaves no room.
    """
    target = Target(network, drafter.feature_layers, owned=True)
    reader = FeatureReader(network, drafter.feature_layers, drafter.model.t2d)
    tally = _Tally(texts=len(prompts))
    for ids in prompts:
        served, stats, budget = Recorder(), GenerationStats(), FixedBudget(nodes, leaves)
        for _ in decode(
            target, drafter, budget, ids, SamplingParams(), max_new_tokens, stats, served
        ):
            pass
        tally.rounds += stats.rounds
        tally.tokens += stats.round_tokens
        _compare_drafts(tally, drafter, served, len(ids))
        sequence = reader.read(Answer("", ids, served.tokens[len(ids) - 1 :], stopped=False))
        shown = torch.cat(served.features)[: len(sequence.tokens)]
        error = _distance(shown, sequence.features.to(shown.device))
        tally.feature_error = max(tally.feature_error, error)
        again = simulate(drafter, sequence, FixedBudget(nodes, leaves), device=shown.device)
        tally.played_rounds += again[0]
        tally.played_tokens += again[1]
    return tally.agreement()


def _compare_drafts(tally: _Tally, drafter: Drafter, served: Recorder, prompt: int) -> None:
    """The first tokens of every round against the training forward on the features shown."""
    # of a long prompt a drafter reads the end alone
    skipped = max(0, prompt - drafter.prompt_pairs)
    features = torch.cat(served.features)[skipped:]
    said = trained_log_probs(drafter.model, features, served.tokens[skipped:])
    for pairs, tokens, log_probs in served.drafted:
        own = said[pairs - 1 - skipped]
        tally.distances += (log_probs - own[tokens]).abs().tolist()
        tally.hits += int(tokens[log_probs.argmax()]) == int(own.argmax())


def _distance(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.float(), theirs.float()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


def trained_log_probs(model: nn.Module, features: Tensor, tokens: list[int]) -> Tensor:
    """Log-probabilities ``[S, V]`` of the first drafted token behind every pair, by the training
    forward; tokens outside the draft vocabulary have none (-inf)."""
    kind = training_kind(model.config.drafter_type)
    asked = torch.tensor([tokens], device=features.device)
    hidden = kind.first_slot(model, features[None].to(next(model.parameters()).dtype), asked)[0]
    reduced = model.lm_head(model.norm(hidden)).float().log_softmax(-1)
    whole = reduced.new_full((len(tokens), len(model.t2d)), float("-inf"))
    whole[:, model.t2d] = reduced
    return whole
