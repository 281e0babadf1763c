"""What a drafter would be accepted for, without running the target.

The target's greedy answer is known and so are its features: the walk through a drafted tree
follows the answer. That is the engine's loop with the target's part replayed, so the accepted
length is the engine's on the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specblock.budget.survival import Trials
from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.objectives.sequence import Sequence
from specblock.engine.drafting import Round, draft_all, start
from specblock.tree.accept import follow
from specblock.tree.draft_tree import DraftTree


def simulate(
    drafter: Drafter,
    sequence: Sequence,
    budget: Budget,
    *,
    copies: TextCopies | None = None,
    device: torch.device | str = "cpu",
    told: Callable[[DraftTree, slice, Trials], None] = lambda tree, fresh, trials: None,
) -> tuple[int, int]:
    """Decode a known answer with ``drafter``.

    Args:
        sequence: an answer that the target gave at temperature 0.
        copies: adds what the text suggests, as in the engine.
        device: of the drafter.
        told: of every round its tree, which of the answer's pairs it added, and its trials.

    Returns:
        (rounds, tokens) as :class:`specblock.engine.statistics.GenerationStats` counts them: one
        verification a round, the bonus token included, the prefill's first token not.
    """
    features, tokens = sequence.features.to(device), sequence.tokens.to(device)
    truth = tokens.tolist()
    prompt = int(sequence.start.nonzero()[0]) + 1  # pairs of the prompt
    drafter.reset(len(truth) + drafter.max_nodes + 1)
    drafter.prefill(features[:prompt], tokens[:prompt])
    # the pairs' tokens lack the text's first, as what a drafter is shown does
    shown = [-1, *truth[:prompt]]
    start(drafter, budget, copies, shown, len(truth) - prompt, features[:prompt])
    known, rounds, counted = prompt, 0, 0
    while known < len(truth):
        own = Round(drafter, budget, copies, truth[known - 1], device)
        (tree,) = draft_all([own], 1)
        accepted, trials = walk(tree, truth[known:])
        fresh = slice(known, min(known + accepted + 1, len(truth)))
        own.report(tree, truth[fresh], trials, features[fresh])
        rounds += 1
        counted += fresh.stop - known
        drafter.observe(features[fresh], tokens[fresh])
        told(tree, fresh, trials)
        known += accepted + 1
    return rounds, counted


def walk(tree: DraftTree, truth: list[int]) -> tuple[int, Trials]:
    """How many tokens of ``truth`` the tree holds from its root on, and the trials on the way.

    Trials are those of :class:`specblock.tree.accept.Acceptance`.
    """
    trials = follow(tree, truth)
    return sum(any(hit for _, hit in children) for children in trials), trials


def greedy_answers(sequences: list[Sequence], d2t: Tensor, limit: int) -> list[Sequence]:
    """The first ``limit`` sequences whose text is what the target finds most likely throughout.

    Told from the targets themselves: at every usable row the arg-max must be the token that
    follows, with one row in a hundred allowed for rounding.
    """
    found = []
    for sequence in sequences:
        usable = sequence.usable[:-1]
        best = sequence.target_ids[:-1, 0][usable].long()
        said = (best + d2t.cpu()[best]) == sequence.tokens[1:][usable]
        if len(found) < limit and said.numel() and said.float().mean() >= 0.99:
            found.append(sequence)
    return found
