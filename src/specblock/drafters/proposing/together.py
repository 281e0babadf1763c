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

from specblock.own import Own

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
def together(
    draftings: Sequence[Drafting[T]], failures: dict[int, Exception] | None = None
) -> list[T | None]:
    """The results of all; forwards of one kind that wait at the same time are computed as one.

    Args:
        failures: is given what a drafting raised, by its number; its result is None. Left out, the
            first error is raised.
    """
    results: dict[int, T | None] = {}
    wanted: dict[int, Forward] = {}

    def resume(number: int, given: Any) -> None:
        with Own() as own:
            if isinstance(given, Exception):
                draftings[number].close()
                raise given
            try:
                wanted[number] = draftings[number].send(given)
            except StopIteration as stop:
                results[number] = stop.value
        if own.error is not None:
            if failures is None:
                raise own.error
            failures[number], results[number] = own.error, None

    for number in range(len(draftings)):
        resume(number, None)
    while wanted:
        groups: defaultdict[Hashable, list[int]] = defaultdict(list)
        for number, forward in wanted.items():
            groups[forward.kind].append(number)
        forwards, wanted = wanted, {}
        for numbers in groups.values():
            given = _computed([forwards[number] for number in numbers])
            for number, own in zip(numbers, given, strict=True):
                resume(number, own)
    return [results[number] for number in range(len(draftings))]


def _computed(same: Sequence[Forward]) -> list[Any]:
    """What each gave, or raised. Forwards write to given places of their text's cache alone, so
    those that fail as one can be computed one by one to see whose fault it is."""
    with Own() as own:
        return same[0].compute(same)
    if len(same) == 1:
        return [own.error]
    return [given for one in same for given in _computed([one])]
