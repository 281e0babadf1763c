"""The answer of a request as it is decoded: what a memory keeps of it."""

from __future__ import annotations

from torch import Tensor

from specblock.tree.accept import Acceptance
from specblock.tree.draft_tree import DraftTree

LEAD = 4  # tokens of the prompt before an answer that is remembered


class AnswerObserver:
    """Token ids of one request as :func:`specblock.engine.rounds.decode` shows it."""

    def __init__(self) -> None:
        self._lead: list[int] = []
        self._answer: list[int] = []

    def prefilled(self, features: Tensor, tokens: Tensor) -> None:
        """The prompt's pairs; their last token is the answer's first."""
        self._lead = tokens[-1 - LEAD :].tolist()

    def verified(
        self, tree: DraftTree, logits: Tensor, features: Tensor, accepted: Acceptance
    ) -> None:
        """A round."""
        self._answer += accepted.tokens

    def text(self, new_tokens: int) -> list[int]:
        """The answer, and of the prompt the last few tokens: what the answer's beginning follows.

        Args:
            new_tokens: how many tokens were kept, the prefill's first included. Behind them an
                end of turn or a stop string has made the rest of a round meaningless.
        """
        return self._lead + self._answer[: max(0, new_tokens - 1)] if self._lead else []
