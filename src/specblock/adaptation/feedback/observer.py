"""Collects a request's feedback while it is decoded, at the price of a few small tensor calls.

Nothing runs the target or the drafter again. A round leaves the features it committed (a reference:
the drafter reads the same tensor), and the target's best probabilities at the visited nodes; what
can wait, waits until the request has ended.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specblock.adaptation.feedback.answer import AnswerObserver
from specblock.adaptation.feedback.buffer import Record
from specblock.adaptation.feedback.signals import RoundSignal, round_signal
from specblock.drafters.objectives.sequence import Sequence
from specblock.tree.accept import Acceptance
from specblock.tree.draft_tree import DraftTree


class TargetReducer:
    """The target's logits to what is kept of them: the ``top`` best tokens of a row."""

    def __init__(self, top: int):
        self._top = top

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """``logits [R, V]`` to token ids int32 [R, T], best first, and their probabilities fp32."""
        logits = logits.float()
        best, ids = logits.topk(min(self._top, logits.shape[-1]), dim=-1)
        return ids.int(), (best - logits.logsumexp(-1, keepdim=True)).exp()


class FeedbackObserver(AnswerObserver):
    """One request as :func:`specblock.engine.rounds.decode` shows it.

    Args:
        stratum: key of the prompt. max_answer_pairs: 0 leaves no record.
        on_round: told how many tokens each round yielded, after it.
    """

    def __init__(
        self,
        reduce: TargetReducer,
        stratum: int,
        *,
        max_prompt_pairs: int,
        max_answer_pairs: int,
        on_round: Callable[[int], None] = lambda tokens: None,
    ):
        super().__init__()
        self._reduce, self._stratum, self._on_round = reduce, stratum, on_round
        self._max_prompt, self._room = max_prompt_pairs, max_answer_pairs
        self._features: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._targets: list[tuple[Tensor, Tensor]] = []
        self._rounds: list[tuple[DraftTree, Acceptance]] = []
        self._prompt_pairs = 0

    def prefilled(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's pairs; of a long prompt the last ones."""
        super().prefilled(features, tokens)
        self._prompt_pairs = min(len(tokens), self._max_prompt)
        self._features.append(features[-self._prompt_pairs :])
        self._tokens.append(tokens[-self._prompt_pairs :])

    def verified(
        self, tree: DraftTree, logits: Tensor, features: Tensor, accepted: Acceptance
    ) -> None:
        """A round: logits of all nodes, features of the accepted path ``[a + 1, F * H]``."""
        super().verified(tree, logits, features, accepted)
        if self._room > 0:
            path = torch.tensor(accepted.path, device=logits.device)
            self._targets.append(self._reduce(logits[path]))
            self._features.append(features)
            self._tokens.append(torch.tensor(accepted.tokens))
            self._room -= len(accepted.tokens)
        self._rounds.append((tree, accepted))
        self._on_round(len(accepted.tokens))

    def signals(self) -> list[RoundSignal]:
        """What every round said of the drafter."""
        return [round_signal(tree, accepted) for tree, accepted in self._rounds]

    def record(self, new_tokens: int) -> Record | None:
        """The request as training data; None where no round was verified.

        Args:
            new_tokens: as in :meth:`text`.
        """
        prompt = self._prompt_pairs
        if not self._targets:
            return None
        features = torch.cat(self._features).to("cpu", torch.bfloat16)
        tokens = torch.cat([part.cpu() for part in self._tokens])
        pairs = min(len(tokens), prompt + new_tokens - 1)
        # row p is the distribution at position p + 1: those of round one begin at the first start
        rows = slice(prompt - 1, pairs - 1)
        count = rows.stop - rows.start
        if count <= 0:
            return None
        said, likely = (torch.cat(part)[:count].cpu() for part in zip(*self._targets, strict=True))
        ids = torch.zeros(pairs, said.shape[1], dtype=torch.int32)
        probabilities = torch.zeros(pairs, said.shape[1])
        usable = torch.zeros(pairs, dtype=torch.bool)
        ids[rows], probabilities[rows], usable[rows] = said, likely, True
        start = torch.arange(pairs) >= prompt - 1
        kept = features[:pairs].clone(), tokens[:pairs].clone()  # not views of the longer ones
        sequence = Sequence(*kept, start, ids, probabilities, usable)
        return Record(sequence, self._missed(pairs, rows), self._stratum)

    def _missed(self, pairs: int, rows: slice) -> Tensor:
        missed = torch.zeros(pairs, dtype=torch.bool)
        place = rows.start - 1
        for tree, accepted in self._rounds:
            place += len(accepted.tokens)
            if tree.num_draft and place < rows.stop:
                missed[place] = True
        return missed
