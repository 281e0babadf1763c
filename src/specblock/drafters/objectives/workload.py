"""How much a training step of a drafter computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """What one forward runs through the drafter.

    ``trunk_rows``: entries computed for all positions; ``later_rows``: entries of blocks or steps
    after them, in so many ``later_forwards``; ``later_keys``: keys that each of these entries sees;
    ``head_rows``: rows through the head.
    """

    trunk_rows: int
    later_rows: int
    later_forwards: int
    later_keys: int
    head_rows: int
