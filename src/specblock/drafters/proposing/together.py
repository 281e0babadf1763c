"""Many texts drafted at once: each by a coroutine of its own, every forward of the network for all.

A drafter's coroutine yields each forward that it needs and is sent what the forward gave; its
return value is what it was written for. :func:`alone` runs one of them, :func:`together` many in
step: block by block their forwards are one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Hashable, Sequence
from typing import Any, Protocol, TypeVar

import torch

__all__ = ["Drafting", "Forward", "alone", "together"]

T = TypeVar("T")


class Forward(Protocol):
    """Rows of one text for the network."""

    @property
    def kind(self) -> Hashable:
        """Forwards of one kind may be computed as one."""

    @staticmethod
    def compute(forwards: Sequence[Any]) -> list[Any]:
        """All of them, which are of one kind, in one call; what each gave."""


Drafting = Generator[Forward, Any, T]


def alone(drafting: Drafting[T]) -> T:
    """The result of one coroutine."""
    return together([drafting])[0]


@torch.inference_mode()
def together(draftings: Sequence[Drafting[T]]) -> list[T]:
    """The results of all; forwards of one kind that wait at the same time are computed as one."""
    results: dict[int, T] = {}
    wanted: dict[int, Forward] = {}

    def resume(number: int, given: Any) -> None:
        try:
            wanted[number] = draftings[number].send(given)
        except StopIteration as stop:
            results[number] = stop.value

    for number in range(len(draftings)):
        resume(number, None)
    while wanted:
        groups: defaultdict[Hashable, list[int]] = defaultdict(list)
        for number, forward in wanted.items():
            groups[forward.kind].append(number)
        forwards, wanted = wanted, {}
        for numbers in groups.values():
            same = [forwards[number] for number in numbers]
            for number, given in zip(numbers, same[0].compute(same), strict=True):
                resume(number, given)
    return [results[number] for number in range(len(draftings))]
