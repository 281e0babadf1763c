"""Regenerated answers on disk, and the draft vocabulary that they call for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from specblock.drafters.fingerprint import target_digest
from specblock.drafters.specblock.network import vocabulary_map
from specblock.errors import SpecBlockError
from specblock.target.model import text_config
from specblock.training.data.prompts import check_ids
from specblock.training.data.shards import read_shard, shard_files


@dataclass(frozen=True)
class Answer:
    """A prompt with the target's answer, as token ids; ``stopped``: it ends with end-of-turn.
    ``target``: whose answer it is, by content; None where that is not known.

    The turns of a conversation are answers of one ``id``, told apart by ``turn``.
    """

    id: str
    prompt_ids: list[int]
    answer_ids: list[int]
    stopped: bool
    turn: int = 0
    target: str | None = None

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.answer_ids


def read_answers(path: Path, *, min_tokens: int = 8, limit: int | None = None) -> list[Answer]:
    """The first ``limit`` answers of at least ``min_tokens`` tokens in a file or folder of shards.

    What :func:`specblock.training.data.regenerate.regenerate` is still writing may be read.

    Raises :class:`SpecBlockError` if there are none, or a line is broken.
    """
    files = shard_files(path)
    if not files:
        raise SpecBlockError(f"There are no answers at {path}; run `specblock regenerate` first.")
    answers: list[Answer] = []
    for file in files:
        for _, row in read_shard(file):
            if limit is not None and len(answers) >= limit:
                return answers
            if len(row.answer_ids) >= min_tokens:
                own = row.id, row.prompt_ids, row.answer_ids, row.finish_reason == "stop"
                answers.append(Answer(*own, row.turn or 0, row.target))
    if not answers:
        raise SpecBlockError(f"{path} holds no answer of {min_tokens} tokens; regenerate more.")
    return answers


def check_answers(answers: Iterable[Answer], target: nn.Module, path: Path) -> None:
    """Refuse answers that ``target`` cannot have given; ``path`` is where they are.

    Raises:
        SpecBlockError: another target gave one, or one has a token that the target does not know.
    """
    vocabulary, digest = text_config(target).vocab_size, target_digest(target)
    for answer in answers:
        where = f"The answer to '{answer.id}', turn {answer.turn}, in {path}"
        check_ids(answer.ids, vocabulary, where)
        if answer.target not in (None, digest):
            raise SpecBlockError(
                f"{where} is another target's ({answer.target}, not {digest}): give the --model "
                f"that answered, or let this one answer with `specblock regenerate`."
            )


def split_held_out(answers: list[Answer], count: int) -> tuple[list[Answer], list[Answer]]:
    """(training, held out): every n-th answer is held out, so that both see the same mix.

    A conversation is never in both: turns of one whose answer is held out are not trained on.
    """
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
