"""Regenerated answers on disk, and the draft vocabulary that they call for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specblock.drafters.specblock.model import vocabulary_map
from specblock.errors import SpecBlockError


@dataclass(frozen=True)
class Answer:
    """A prompt with the target's answer, as token ids; ``stopped``: it ends with end-of-turn."""

    id: str
    prompt_ids: list[int]
    answer_ids: list[int]
    stopped: bool

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.answer_ids


def read_answers(path: Path, *, min_tokens: int = 8) -> list[Answer]:
    """The answers of :func:`specblock.training.regenerate.regenerate` of at least ``min_tokens``.

    Raises :class:`SpecBlockError` if there are none.
    """
    if not path.is_file():
        raise SpecBlockError(f"There is no answer file {path}; run `specblock regenerate` first.")
    answers = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if len(row["answer_ids"]) >= min_tokens:
            stopped = row["finish_reason"] == "stop"
            answers.append(Answer(row["id"], row["prompt_ids"], row["answer_ids"], stopped))
    if not answers:
        raise SpecBlockError(f"{path} holds no answer of {min_tokens} tokens; regenerate more.")
    return answers


def split_held_out(answers: list[Answer], count: int) -> tuple[list[Answer], list[Answer]]:
    """(training, held out): every n-th answer is held out, so that both see the same mix."""
    stride = max(2, len(answers) // max(1, count))
    held = answers[::stride][:count]
    names = {answer.id for answer in held}
    return [answer for answer in answers if answer.id not in names], held


def count_tokens(answers: Iterable[Answer], vocab_size: int) -> Tensor:
    """How often each target token occurs in the answers, int64 [V]."""
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for answer in answers:
        counts += torch.bincount(torch.tensor(answer.answer_ids), minlength=vocab_size)
    return counts


def draft_vocabulary(counts: Tensor, size: int) -> tuple[Tensor, Tensor, float]:
    """``d2t``, ``t2d`` of the ``size`` most frequent tokens, and the share of text they cover.

    Ties, and room left over, go to the lower ids, which are the commoner ones in BPE vocabularies.
    """
    order = torch.argsort(counts, descending=True, stable=True)
    d2t, t2d = vocabulary_map(order[:size], counts.numel())
    coverage = counts[t2d].sum().item() / max(1, counts.sum().item())
    return d2t, t2d, coverage
