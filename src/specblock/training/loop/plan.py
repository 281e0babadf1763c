"""Which sequences are trained on when: a function of the seed, never of what happened before."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def epoch_order(count: int, epoch: int, seed: int) -> list[int]:
    """The order of sequences in an epoch; a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tolist()


def length_grouped(order: list[int], lengths: list[int], size: int) -> list[list[int]]:
    """Batches of ``size`` with similar lengths: sorted within windows of 16 batches."""
    batches = []
    for start in range(0, len(order), 16 * size):
        window = sorted(order[start : start + 16 * size], key=lambda i: lengths[i])
        batches += [window[i : i + size] for i in range(0, len(window), size)]
    spread = torch.randperm(len(batches), generator=torch.Generator().manual_seed(len(order)))
    return [batches[i] for i in spread.tolist()]


def steps_from(
    first: int, lengths: list[int], size: int, epochs: int, seed: int
) -> Iterator[list[int]]:
    """The sequences of every optimiser step from step ``first`` on, ``size`` a step."""
    step = 0
    for epoch in range(epochs):
        for batch in length_grouped(epoch_order(len(lengths), epoch, seed), lengths, size):
            if step >= first:
                yield batch
            step += 1


def micro_batches(step: list[int], rank: int, workers: int, accumulation: int) -> list[list[int]]:
    """What process ``rank`` runs of a step, in ``accumulation`` forwards.

    All processes run equally many; a step too small for that repeats some of its sequences.
    """
    count = workers * accumulation
    full = [step[i % len(step)] for i in range(max(len(step), count))]
    return [full[rank + workers * index :: count] for index in range(accumulation)]
