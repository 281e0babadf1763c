"""How far a drafter's probabilities can be trusted, learned once on some prompts.

The survival model learns while decoding, but a fresh one takes the drafter at its word, and a
drafter trained on a target's whole distribution is too modest about greedy decoding: where it says
40 %, the target's first choice is its own far more often. What was learned on some prompts is
where every later run starts from. Sampled decoding starts fresh: there the word is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from specblock.budget.survival import SurvivalModel
from specblock.drafters.base import FixedBudget
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.rounds import decode
from specblock.engine.speculator import Speculator
from specblock.engine.statistics import GenerationStats
from specblock.errors import ConfigError
from specblock.tree.accept import follow
from specblock.tree.draft_tree import DraftTree
from specblock.tree.sampling import SamplingParams


class LearningBudget(FixedBudget):
    """A fixed budget that records what becomes of its nodes, all rounds counting alike."""

    def __init__(self, nodes: int = 24, leaves: int = 4):
        super().__init__(nodes, leaves)
        self.model = SurvivalModel.fresh(discount=1.0)

    def speculate(self, copied: DraftTree | None = None) -> bool:
        self._copied = copied
        return True

    def update(self, log_probs, classes, trials) -> None:
        self.model = self.model.update(log_probs, classes, trials)

    def drawn(self, tokens: list[int]) -> None:
        copied = self._copied
        trials = follow(copied, tokens)
        self.model = self.model.update(copied.log_probs, copied.classes, trials)


def learn_survival(
    speculator: Speculator,
    prompts: Iterable[list[int]],
    max_new_tokens: int = 64,
    on_prompt: Callable[[int, GenerationStats], None] = lambda number, stats: None,
) -> SurvivalModel:
    """The survival model after greedy answers to ``prompts`` (token ids).

    Raises :class:`ConfigError` without a drafter.
    """
    if speculator.drafter is None:
        raise ConfigError("There is no drafter to learn about: choose one with --drafter.")
    budget = LearningBudget()
    ends = speculator.end_tokens()
    for number, prompt in enumerate(prompts, 1):
        stats = GenerationStats()
        rounds = decode(
            speculator.target,
            speculator.drafter,
            budget,
            prompt,
            SamplingParams(),
            max_new_tokens,
            stats,
            copies=TextCopies(),
        )
        for tokens in rounds:
            if ends & set(tokens):
                break
        on_prompt(number, stats)
    return replace(budget.model, discount=SurvivalModel.fresh().discount)
