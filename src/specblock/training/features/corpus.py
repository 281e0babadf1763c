"""Where a trainer's sequences come from: main memory, the target itself, or a store on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from typing import Protocol

from specblock.drafters.objectives.sequence import Sequence
from specblock.training.data.answers import Answer
from specblock.training.features.reader import FeatureReader


class Corpus(Protocol):
    """Numbered answers, seen as pairs with targets."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(pairs, answer tokens) of every sequence; known without reading any."""

    def read(self, numbers: Iterable[int]) -> list[Sequence]:
        """The sequences with these numbers, on the CPU; best a batch at a time."""


class Kept:
    """Sequences in main memory: the quickest over several epochs, where they fit."""

    def __init__(self, sequences: Items[Sequence]):
        self._sequences = sequences
        self.sizes = [(s.tokens.numel(), s.answer_tokens) for s in sequences]

    def read(self, numbers: Iterable[int]) -> list[Sequence]:
        return [self._sequences[number] for number in numbers]


class Online:
    """Answers whose features the target computes whenever they are asked for: needs no room."""

    def __init__(self, reader: FeatureReader, answers: Items[Answer]):
        self._reader, self._answers = reader, answers
        self.sizes = sizes_of(answers)

    def read(self, numbers: Iterable[int]) -> list[Sequence]:
        return self._reader.read_batch([self._answers[number] for number in numbers])


def sizes_of(answers: Iterable[Answer]) -> list[tuple[int, int]]:
    """(pairs, answer tokens) of answers, as their sequences will have them."""
    return [(len(answer.ids) - 1, len(answer.answer_ids)) for answer in answers]


def read_all(
    reader: FeatureReader,
    answers: Items[Answer],
    report: Callable[[str], None] = lambda line: None,
    batch: int = 8,
) -> list[Sequence]:
    """Features of all answers; says how much that is on the way."""
    read: dict[int, Sequence] = {}
    size = 0
    for number, (chosen, sequences) in enumerate(by_length(reader, answers, batch)):
        read.update(zip(chosen, sequences, strict=True))
        size += sum(sequence.nbytes() for sequence in sequences)
        if number % 25 == 0 or len(read) == len(answers):
            report(f"features of {len(read)} of {len(answers)} answers, {size / 2**30:.1f} GiB")
    return [read[i] for i in range(len(answers))]


def by_length(
    reader: FeatureReader, answers: Items[Answer], batch: int = 8
) -> Iterator[tuple[list[int], list[Sequence]]]:
    """Features of ``batch`` answers at a time, of similar length, and the places of these answers:
    in one forward the shortest costs what the longest does."""
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].ids))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        yield chosen, reader.read_batch([answers[i] for i in chosen])
