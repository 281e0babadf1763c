"""A stream played back: the answers are known, so nothing is decoded and the seconds are a table's.

Per round a drafter drafts as it would, and the walk through its tree follows the answer. What the
round would have taken is the budget's own account by the measured cost table; a prompt is taken to
cost the table's seconds for its rows. Updates run for real. Features, and what the target said
beside the answer, come of one forward over each answer, which all contenders share.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specblock.adaptation.adapter import Adaptation
from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.doorway import adaptation_of
from specblock.adaptation.remembering import Remembering
from specblock.adaptation.replay.contenders import (
    NEVER,
    PLAIN,
    Answered,
    Name,
    parts,
    settings_of,
)
from specblock.budget.costs import CostTable
from specblock.budget.survival import Trials
from specblock.drafters.objectives.sequence import Sequence
from specblock.engine.speculator import Speculator
from specblock.engine.statistics import GenerationStats
from specblock.errors import ConfigError
from specblock.training.data.answers import Answer
from specblock.training.evaluate.simulate import simulate
from specblock.training.features.reader import FeatureReader
from specblock.tree.accept import Acceptance
from specblock.tree.draft_tree import DraftTree

__all__ = ["KnownAnswer", "Played", "Reading", "prompt_seconds"]

_PROMPT_ROWS = 128  # of a prompt that enter in one forward


@dataclass(frozen=True)
class KnownAnswer:
    """A request whose answer was given before."""

    id: str
    task: str
    answer: Answer


class Reading:
    """Reads an answer once for all contenders.

    Args:
        top: how many of the target's probabilities are kept of a row.
    """

    def __init__(self, speculator: Speculator, top: int):
        layers, every = speculator.drafter.feature_layers, speculator.target.vocab_size
        vocabulary = torch.ones(every, dtype=torch.bool)
        self._reader = FeatureReader(speculator.target.model, layers, vocabulary, top)
        self._known: tuple[KnownAnswer, Sequence] | None = None

    def of(self, request: KnownAnswer) -> Sequence:
        """Features and the target's own best tokens (``target_ids`` are the target's)."""
        if self._known is None or self._known[0] is not request:
            self._known = request, self._reader.read(request.answer)
        return self._known[1]


def prompt_seconds(costs: CostTable, tokens: int) -> float:
    """What reading a prompt of so many tokens takes by the table."""
    whole, rest = divmod(tokens, _PROMPT_ROWS)
    return whole * costs.target_seconds(_PROMPT_ROWS) + costs.target_seconds(rest)


class _KnownTargets:
    """In place of a reducer of logits: it is given row numbers, and looks up what is known."""

    def __init__(self) -> None:
        self.sequence: Sequence | None = None

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.sequence.target_ids[rows], self.sequence.target_probabilities[rows]


class Played:
    """A contender whose answers are known.

    Its learning is timed by the processor's seconds, so that what else the machine does is no part
    of a day that mostly consists of a table's.

    Raises :class:`ConfigError` without this machine's costs.
    """

    clock = staticmethod(time.thread_time)

    def __init__(
        self,
        speculator: Speculator,
        name: Name,
        reading: Reading,
        adapt: AdaptationConfig,
        folder: Path | None,
    ):
        if speculator.costs is None:
            raise ConfigError("A playback needs this machine's costs: run 'specblock calibrate'.")
        self._costs, self._reading = speculator.costs, reading
        self._drafter, self._budget, _, self._copies = parts(speculator, name.policy)
        self.adaptation: Adaptation | Remembering | None = None
        if name.policy not in (PLAIN, NEVER):
            settings = settings_of(name, adapt, folder)
            self.adaptation = adaptation_of(
                self._drafter, settings, (self._budget,), speculator.target
            )
            self._copies.memory = self.adaptation.memory
        self._targets = _KnownTargets()
        if isinstance(self.adaptation, Adaptation):
            self.adaptation.reducer = self._targets

    def answer(self, request: KnownAnswer) -> Answered:
        """Play the answer back, and learn from it."""
        tokens, prompt = request.answer.answer_ids, len(request.answer.prompt_ids)
        first = prompt_seconds(self._costs, prompt)
        plain = self._costs.target_seconds(1)
        if self._drafter is None:
            seconds = first + plain * (len(tokens) - 1)
            return Answered(tokens, seconds, len(tokens) - 1, len(tokens) - 1)
        sequence = self._targets.sequence = self._reading.of(request)
        observer = None
        if self.adaptation is not None:
            observer = self.adaptation.observer(request.answer.prompt_ids)
            observer.prefilled(sequence.features[:prompt], sequence.tokens[:prompt])

        def told(tree: DraftTree, fresh: slice, trials: Trials) -> None:
            if observer is not None:
                _show(observer, sequence, tree, fresh, trials)

        rounds, counted = simulate(
            self._drafter, sequence, self._budget, copies=self._copies, told=told
        )
        decoding = plain * self._budget.account.steps
        stats = GenerationStats(new_tokens=len(tokens), rounds=rounds, round_tokens=counted)
        stats.prefill_seconds, stats.seconds = first, first + decoding
        began = self.clock()
        updating = self.adaptation is not None and self._finish(observer, stats)
        learning = self.clock() - began if updating else 0.0
        return Answered(tokens, first + decoding + learning, rounds, counted)

    def _finish(self, observer, stats: GenerationStats) -> bool:
        """The request is over; whether an update was made at once."""
        attempts = self._attempts
        self.adaptation.finished(observer, stats)
        return self._attempts > attempts

    @property
    def _attempts(self) -> int:
        journal = getattr(self.adaptation, "journal", None)
        return 0 if journal is None else journal.attempts

    def close(self) -> None:
        if self.adaptation is not None:
            self.adaptation.close()


def _show(observer, sequence: Sequence, tree: DraftTree, fresh: slice, trials: Trials) -> None:
    """A round to what observes it: row numbers stand for logits."""
    hits = [next((node for node, hit in children if hit), None) for children in trials]
    path = [0, *(node for node in hits if node is not None)][: fresh.stop - fresh.start]
    rows = torch.zeros(len(tree.tokens), dtype=torch.int64)
    rows[path] = torch.arange(fresh.start - 1, fresh.start - 1 + len(path))
    tokens = sequence.tokens[fresh].tolist()
    accepted = Acceptance(path, tokens, trials)
    observer.verified(tree, rows, sequence.features[fresh], accepted)
