"""What an objective is given, and what it gives back beside the loss."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from specblock.drafters.objectives.losses import Targets


@dataclass(frozen=True)
class Batch:
    """Sequences ready for training, right-padded.

    ``features [B, S, F * H]`` of position i, ``tokens`` int64 [B, S] = token i + 1, ``start`` bool
    [B, S]: pairs from which decoding may draft, ``targets`` over [B, S + pad] rows where row p is
    the target's distribution *at position p + 1*, so slot k of pair i at offset o reads row
    ``i + o + k``; ``pad`` unusable rows at the end. ``keys`` int64 [B] names the sequences: random
    choices belong to them (:func:`specblock.drafters.objectives.noise.keyed_noise`), not to their
    place in the batch.
    """

    features: Tensor
    tokens: Tensor
    start: Tensor
    targets: Targets
    keys: Tensor | None = None

    def sequence_keys(self) -> Tensor:
        """``keys``, or the places in the batch where none were given."""
        return torch.arange(len(self.tokens)) if self.keys is None else self.keys

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; keys stay on the CPU, where noise is drawn."""
        targets = Targets(*(getattr(self.targets, f.name).to(device) for f in fields(Targets)))
        moved = {name: getattr(self, name).to(device) for name in ("features", "tokens", "start")}
        return replace(self, targets=targets, **moved)


@dataclass
class Tally:
    """Sums over a batch, for the log: per block and slot rows, hits, loss (fp64 [blocks, slots]).

    ``live_rows`` and ``live_hits`` count all positions that were drafted from, on the chain or not.
    ``confusion`` [true, predicted bucket] is the rank head's. ``terms`` are the shares of the loss.
    """

    rows: Tensor
    hits: Tensor
    live_hits: Tensor
    live_rows: Tensor
    loss: Tensor
    confusion: Tensor = field(default_factory=lambda: torch.zeros(4, 4, dtype=torch.float64))
    terms: list[Tensor] = field(default_factory=list)

    @staticmethod
    def empty(blocks: int, slots: int) -> Tally:
        return Tally(*(torch.zeros(blocks, slots, dtype=torch.float64) for _ in range(5)))

    def sums(self) -> list[Tensor]:
        """Everything that adds up over batches and processes."""
        return [self.rows, self.hits, self.live_hits, self.live_rows, self.loss, self.confusion]

    @staticmethod
    def total(tallies: list[Tally]) -> Tally:
        """The sum of several tallies, without the losses' terms."""
        parts = zip(*(tally.sums() for tally in tallies), strict=True)
        return Tally(*(torch.stack(part).sum(0) for part in parts))


class Objective(Protocol):
    """What a drafter learns from a batch.

    ``pad_rows``: how many rows behind the last pair its slots may ask targets of.
    """

    @property
    def pad_rows(self) -> int: ...

    def __call__(
        self, model: nn.Module, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tally]:
        """The loss of a micro-batch and what to log of it.

        Means run over the rows of all processes
        (:class:`specblock.drafters.objectives.reduction.Means`). ``generator`` is on the CPU and
        in the same state in every process.
        """


def summary(tally: Tally) -> dict[str, float]:
    """Accuracy on the chain and loss by block and slot, where there were rows."""
    row = {}
    for block in range(tally.rows.shape[0]):
        for slot in range(tally.rows.shape[1]):
            rows = tally.rows[block, slot].item()
            if rows:
                name = f"b{block + 1}s{slot}"
                row[f"accuracy_{name}"] = round(tally.hits[block, slot].item() / rows, 4)
                row[f"loss_{name}"] = round(tally.loss[block, slot].item() / rows, 4)
    return row
