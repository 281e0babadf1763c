"""The answer of a request as it is decoded: what a memory keeps of it."""

from __future__ import annotations

import torch
from torch import Tensor

from specblock.drafters.lookup.memory import TextMemory
from specblock.tree.accept import Acceptance
from specblock.tree.draft_tree import DraftTree

_PROMPT = 64  # pairs of a prompt that are kept: they show what the target's states look like


class AnswerObserver:
    """One request as :func:`specblock.engine.rounds.decode` shows it: token ids and features."""

    def __init__(self) -> None:
        self._before: list[int] = []  # the prompt's last pairs
        self._answer: list[int] = []
        self._shown: list[Tensor] = []  # features of the prompt's last pairs, then of every round

    def prefilled(self, features: Tensor | None, tokens: Tensor) -> None:
        """The prompt's pairs, features None where no layer is read; their last token is the
        answer's first."""
        self._before = tokens[-_PROMPT:].tolist()
        if features is not None:
            self._shown.append(features[-_PROMPT:].clone())  # not a view of the whole prompt's

    def verified(
        self, tree: DraftTree, logits: Tensor, features: Tensor, accepted: Acceptance
    ) -> None:
        """A round: features of the accepted path ``[a + 1, F * H]``."""
        self._answer += accepted.tokens
        if self._shown:
            self._shown.append(features)

    def remember_in(self, memory: TextMemory, new_tokens: int) -> None:
        """Keep the answer in a memory, with the target's states where they were shown.

        Args:
            new_tokens: how many tokens were kept, the prefill's first included. Behind them an
                end of turn or a stop string has made the rest of a round meaningless.
        """
        if not self._before:
            return
        text = self._before + self._answer[: max(0, new_tokens - 1)]
        features = torch.cat(self._shown)[: len(text)] if self._shown else None
        memory.remember_answer(text, len(self._before), features)
