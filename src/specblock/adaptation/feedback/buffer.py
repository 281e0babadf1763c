"""What verification taught, kept in main memory: a ring with a byte limit, in strata.

A stratum is a prompt: a burst of equal requests fills one stratum, which then pushes out its own
records and nobody else's. Whether a stratum is trained on or held out is a function of its key, so
that no prompt is ever on both sides.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specblock.drafters.objectives.noise import mixed_seed
from specblock.drafters.objectives.sequence import Sequence

PER_STRATUM = 2  # answers to one prompt may differ when they are sampled


@dataclass(frozen=True, eq=False)
class Record:
    """One request's feedback.

    ``sequence`` is what the training objective reads once :func:`as_drafted` has put it into a
    draft vocabulary: here ``target_ids`` are the target's own. Features are bfloat16. ``missed``
    bool [S]
    marks target rows where the tree held no node for the target's token: the drafter's first
    mistake of a round. ``stratum`` is the prompt's key.
    """

    sequence: Sequence
    missed: Tensor
    stratum: int

    @property
    def answer_tokens(self) -> int:
        return self.sequence.answer_tokens

    def nbytes(self) -> int:
        return self.sequence.nbytes() + self.missed.numel() * 3  # start, usable, missed


def as_drafted(record: Record, t2d: Tensor) -> Sequence:
    """A record in terms of the draft vocabulary ``t2d`` bool [V].

    Of every row the tokens that can be drafted stay, best first, with their probabilities among
    these (by the tokens that were kept: what is beyond them is little). A row is usable if the
    target's first choice can be drafted.
    """
    sequence, t2d = record.sequence, t2d.cpu()
    ids = sequence.target_ids.long()
    inside = t2d[ids]
    likely = sequence.target_probabilities.masked_fill(~inside, 0.0)
    lost = (sequence.target_probabilities - likely).sum(-1, keepdim=True)
    likely = likely / (1.0 - lost).clamp(min=1e-6)
    likely, order = likely.sort(stable=True, dim=-1, descending=True)
    drafted = ((t2d.long().cumsum(0) - 1)[ids] * inside).gather(-1, order)
    return replace(
        sequence,
        target_ids=drafted.int(),
        target_probabilities=likely,
        usable=sequence.usable & inside[:, 0],
    )


def stratum_of(prompt: list[int]) -> int:
    """A 63-bit key of a prompt's tokens, the same in every process."""
    digest = hashlib.blake2b(repr(prompt).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class FeedbackBuffer:
    """The newest records within ``max_bytes``.

    Args:
        held_out_share: of the strata, kept for judging updates.
        half_life: records after which the chance of being drawn for training has halved.
    """

    def __init__(
        self, max_bytes: int, held_out_share: float = 0.2, half_life: float = 32.0, seed: int = 0
    ):
        self.max_bytes, self.held_out_share, self.half_life = max_bytes, held_out_share, half_life
        self._seed = seed
        self._records: list[Record] = []  # oldest first
        self.nbytes = 0
        self.seen, self.evicted = 0, 0

    def __len__(self) -> int:
        return len(self._records)

    def is_held_out(self, stratum: int) -> bool:
        return mixed_seed(self._seed, stratum) < self.held_out_share * 2**32

    def add(self, record: Record) -> None:
        """Take a record in; what has to leave is the oldest of the largest stratum."""
        self.seen += 1
        if record.nbytes() > self.max_bytes:
            self.evicted += 1
            return
        self._records.append(record)
        self.nbytes += record.nbytes()
        own = [kept for kept in self._records if kept.stratum == record.stratum]
        if len(own) > PER_STRATUM:
            self._drop(own[0])
        while self.nbytes > self.max_bytes:
            self._drop(self._dispensable())

    def _dispensable(self) -> Record:
        """Of the stratum with most records; of several, the one with the oldest record."""
        counts: dict[int, int] = {}
        for record in self._records:
            counts[record.stratum] = counts.get(record.stratum, 0) + 1
        most = max(counts.values())
        return next(record for record in self._records if counts[record.stratum] == most)

    def _drop(self, record: Record) -> None:
        self._records.remove(record)
        self.nbytes -= record.nbytes()
        self.evicted += 1

    def clear(self) -> None:
        """Forget all records."""
        for record in list(self._records):
            self._drop(record)

    def training(self) -> list[Record]:
        """Records that may be trained on, oldest first."""
        return [record for record in self._records if not self.is_held_out(record.stratum)]

    def held_out(self, count: int) -> list[Record]:
        """The newest ``count`` records that updates are judged on."""
        found = [record for record in self._records if self.is_held_out(record.stratum)]
        return found[-count:]

    def draw(self, count: int, seed: int) -> list[Record]:
        """``count`` training records without repetition, newer ones more likely; all if fewer."""
        records = self.training()
        if len(records) <= count:
            return records
        age = torch.arange(len(records) - 1, -1, -1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.multinomial(2 ** (-age / self.half_life), count, generator=generator)
        return [records[index] for index in chosen.sort().values.tolist()]

    def statistics(self) -> dict[str, int]:
        """Counters for the status and the saved state."""
        return {
            "records": len(self),
            "held_out": len(self) - len(self.training()),
            "bytes": self.nbytes,
            "answer_tokens": sum(record.answer_tokens for record in self._records),
            "seen": self.seen,
            "evicted": self.evicted,
        }

    def restore(self, statistics: dict[str, int]) -> None:
        """Go on counting where a former process stopped; its records are gone."""
        self.seen = statistics["seen"]
        self.evicted = statistics["evicted"] + statistics["records"]
