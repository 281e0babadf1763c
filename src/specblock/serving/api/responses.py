"""Answers as the API's objects, whole and piece by piece."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from specblock.serving.api.figures import figures, usage
from specblock.serving.decoding.pieces import LEAST, Piece, ServedAnswer, TokenLogprobs

__all__ = ["Chat", "Completion", "Spelling"]

Spelling = Callable[[int], tuple[str, list[int] | None]]  # of a token: its text, and its bytes


class Chat:
    """``/v1/chat/completions``. ``max_nodes``: most draft nodes of a round."""

    prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(
        self, model: str, answers: list[ServedAnswer], n: int, spell: Spelling, nodes: int
    ):
        self._answers, self._n, self._spell, self._nodes = answers, n, spell, nodes
        self._base = {
            "id": self.prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }
        self._begun: set[int] = set()
        self._length: dict[int, int] = {}  # characters, by choice, that log-probabilities spell

    def whole(self, pieces: dict[ServedAnswer, list[Piece]]) -> dict[str, Any]:
        """The answer as one object."""
        choices = [self._choice(answer, pieces[answer]) for answer in self._answers]
        return {"object": self.whole_object, **self._base, "choices": choices, **self._figures()}

    def chunk(self, answer: ServedAnswer, piece: Piece) -> dict[str, Any]:
        """A piece as an object of the stream."""
        choice = {
            "index": answer.index,
            **self._delta(answer, piece),
            "logprobs": self._logprobs(answer, piece.logprobs),
            "finish_reason": piece.finish_reason,
        }
        found = {"object": self.chunk_object, **self._base, "choices": [choice]}
        return found if piece.round is None else {**found, "round": piece.round}

    def last(self) -> dict[str, Any]:
        """The object with the figures, which closes a stream."""
        return {"object": self.chunk_object, **self._base, "choices": [], **self._figures()}

    def _figures(self) -> dict[str, Any]:
        stats = [answer.stats for answer in self._answers]
        return {"usage": usage(stats, self._n), **figures(stats, self._nodes)}

    def _choice(self, answer: ServedAnswer, pieces: list[Piece]) -> dict[str, Any]:
        told = [own for piece in pieces for own in piece.logprobs]
        found = {
            "index": answer.index,
            **self._message("".join(piece.text for piece in pieces)),
            "logprobs": self._logprobs(answer, told),
            "finish_reason": pieces[-1].finish_reason,
        }
        rounds = [piece.round for piece in pieces if piece.round is not None]
        return {**found, "rounds": rounds} if answer.rounds else found

    def _message(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, answer: ServedAnswer, piece: Piece) -> dict[str, Any]:
        first = answer.index not in self._begun
        self._begun.add(answer.index)
        role = {"role": "assistant"} if first else {}
        return {"delta": {**role, "content": piece.text}}

    def _logprobs(self, answer: ServedAnswer, told: list[TokenLogprobs]) -> dict[str, Any] | None:
        if answer.top is None:
            return None
        content = [
            {
                **self._entry(own.token, own.logprob),
                "top_logprobs": [self._entry(token, value) for token, value in own.top],
            }
            for own in told
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, spelled = self._spell(token)
        return {"token": text, "logprob": max(logprob, LEAST), "bytes": spelled}


class Completion(Chat):
    """``/v1/completions``."""

    prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def _message(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, answer: ServedAnswer, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text}

    def _logprobs(self, answer: ServedAnswer, told: list[TokenLogprobs]) -> dict[str, Any] | None:
        if answer.top is None:
            return None
        tokens, offsets = [self._spell(own.token)[0] for own in told], []
        for text in tokens:
            offsets.append(self._length.setdefault(answer.index, 0))
            self._length[answer.index] += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [max(own.logprob, LEAST) for own in told],
            "top_logprobs": [
                {self._spell(token)[0]: max(value, LEAST) for token, value in own.top}
                for own in told
            ],
            "text_offset": offsets,
        }
