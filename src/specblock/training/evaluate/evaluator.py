"""How good a drafter is while it is trained: losses, accuracies, and what decoding would accept."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from specblock.drafters.base import Drafter, FixedBudget
from specblock.drafters.objectives.batch import Batch, Objective, Tally, summary
from specblock.drafters.objectives.processes import alone
from specblock.drafters.objectives.sequence import Sequence
from specblock.training.distributed.workers import Workers
from specblock.training.evaluate.simulate import simulate
from specblock.training.features.reader import collate


class TrainingLoss(nn.Module):
    """A drafter and what it learns, as one module: the thing that DDP wraps.

    ``mixed_precision``: bf16 products over fp32 weights.
    """

    def __init__(self, model: nn.Module, objective: Objective, *, mixed_precision: bool):
        super().__init__()
        self.model, self.objective, self.mixed_precision = model, objective, mixed_precision

    def forward(self, batch: Batch, seed: int) -> tuple[Tensor, Tally]:
        """The loss of a micro-batch; ``seed`` is the same in every process."""
        generator = torch.Generator().manual_seed(seed)
        device = batch.tokens.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.mixed_precision):
            loss, tally = self.objective(self.model, batch, generator)
        tally.terms = []  # they hold on to the graph
        return loss, tally


def make_batch(sequences: list[Sequence], keys: list[int], pad_rows: int) -> Batch:
    """Sequences, whose numbers are ``keys``, as a batch on the CPU."""
    return replace(collate(sequences, pad_rows), keys=torch.tensor(keys))


@dataclass(frozen=True)
class Evaluation:
    """Sums over the held-out answers; ``rounds`` and ``tokens`` of simulated decoding."""

    tally: Tally
    rounds: int
    tokens: int

    @property
    def accepted_length(self) -> float | None:
        """tau: accepted draft tokens and the bonus token, pooled over rounds; None if unknown."""
        return self.tokens / self.rounds if self.rounds else None

    def row(self) -> dict[str, float]:
        """For a report: accuracy on the chain and loss by slot, the rank head's hits, tau."""
        row = summary(self.tally)
        confusion = self.tally.confusion
        if confusion.sum():
            row["rank_accuracy"] = round((confusion.trace() / confusion.sum()).item(), 4)
        if self.rounds:
            row["tau"] = round(self.accepted_length, 3)
        return row


@dataclass(frozen=True)
class Evaluator:
    """Measures a drafter on answers that it is not trained on.

    Args:
        held_out: for losses and accuracies; at least one.
        greedy: answers at temperature 0, for simulated decoding.
        serve: the drafter that decodes with the network, sharing its weights.
        nodes, leaves: the fixed budget of every simulated round.
    """

    held_out: Items[Sequence]
    greedy: Items[Sequence] = ()
    serve: Callable[[nn.Module], Drafter] | None = None
    batch_sequences: int = 8
    seed: int = 0
    nodes: int = 32
    leaves: int = 8

    @torch.no_grad()
    def __call__(self, network: TrainingLoss, workers: Workers) -> Evaluation:
        """The same positions every time. Every process must call it; they share the work."""
        was_training = network.training
        network.eval()
        tally = self._tally(network, workers)
        rounds = tokens = 0
        if self.serve is not None:
            drafter = self.serve(network.model)
            for sequence in list(self.greedy)[workers.rank :: workers.count]:
                budget = FixedBudget(self.nodes, self.leaves)
                more = simulate(drafter, sequence, budget, device=workers.device)
                rounds, tokens = rounds + more[0], tokens + more[1]
        network.train(was_training)
        rounds, tokens = workers.total(torch.tensor([rounds, tokens])).tolist()
        return Evaluation(tally, rounds, tokens)

    def _tally(self, network: TrainingLoss, workers: Workers) -> Tally:
        lengths = [sequence.tokens.numel() for sequence in self.held_out]
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        size, pad = self.batch_sequences, network.objective.pad_rows
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        mine = batches[workers.rank :: workers.count]
        with alone():
            tallies = [
                network(batch.to(workers.device), self.seed)[1]
                for keys in mine or batches[:1]  # one to learn the shape from
                for batch in [make_batch([self.held_out[key] for key in keys], keys, pad)]
            ]
        sums = Tally.total(tallies).sums()
        return Tally(*(workers.total(part if mine else torch.zeros_like(part)) for part in sums))
