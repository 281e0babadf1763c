"""A drafter judged on answers that are known: no decoding, no clock, so no noise.

Accepted lengths follow from the answers alone (:mod:`specblock.training.evaluate.simulate`). With a
measured cost table the budget's own account says how long every answer would have taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from specblock.budget.controller import BudgetController
from specblock.drafters.base import Drafter, FixedBudget
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.objectives.sequence import Sequence
from specblock.training.evaluate.simulate import simulate


@dataclass(frozen=True)
class Playback:
    """What became of some answers: rounds and tokens of all, the speed-up over plain decoding of
    each (none with a fixed budget)."""

    rounds: int
    tokens: int
    speedups: tuple[float, ...] = ()

    @property
    def accepted_length(self) -> float:
        """tau: accepted draft tokens and the bonus token, pooled over rounds."""
        return self.tokens / self.rounds

    def row(self) -> dict[str, float]:
        """For a report."""
        row: dict[str, float] = {"tau": round(self.accepted_length, 3)}
        if self.speedups:
            several = len(self.speedups) > 1
            lower = quantiles(self.speedups, n=4)[0] if several else self.speedups[0]
            row |= {
                "median": round(median(self.speedups), 3),
                "lower_quartile": round(lower, 3),
                "mean": round(sum(self.speedups) / len(self.speedups), 3),
                "lowest": round(min(self.speedups), 3),
                "below_0.95": sum(speedup < 0.95 for speedup in self.speedups),
            }
        return row


def play(
    drafter: Drafter,
    answers: Iterable[Sequence],
    budget: FixedBudget | BudgetController,
    copies: TextCopies | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Playback:
    """Decode known greedy answers one after the other, with a budget that learns on the way.

    Args:
        answers: what the target gave at temperature 0; at least one.
        budget: a controller also says how long each would have taken by its cost table.
        copies: adds what the text suggests, as in the engine; a memory of theirs remembers answers.
        device: of the drafter.
    """
    rounds, tokens, speedups = 0, 0, []
    for answer in answers:
        more = simulate(drafter, answer, budget, copies=copies, device=device)
        rounds, tokens = rounds + more[0], tokens + more[1]
        if copies is not None and copies.memory is not None:
            prompt = int(answer.start.nonzero()[0]) + 1
            copies.memory.remember_answer(answer.tokens.tolist(), prompt, answer.features)
        if isinstance(budget, BudgetController):
            speedups.append(budget.account.tokens / budget.account.steps)
    return Playback(rounds, tokens, tuple(speedups))


def shortened(answer: Sequence, tokens: int) -> Sequence:
    """The answer's first ``tokens`` behind the one that the prefill yields."""
    end = int(answer.start.nonzero()[0]) + 1 + tokens
    return Sequence(*(value[:end] for value in vars(answer).values()))
