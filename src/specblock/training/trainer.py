"""The training loop: epochs over cached sequences, AdamW, checkpoints that resume."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from specblock.drafters.specblock.model import SpecBlockModel
from specblock.storage import atomic_file
from specblock.training.features import Sequence, collate
from specblock.training.objective import ObjectiveConfig, Tally, total_loss


@dataclass(frozen=True)
class TrainConfig:
    """How to train. ``batch_sequences`` per optimiser step; ``lr`` peaks after ``warmup_steps``
    and falls to ``lr_floor`` of itself along a cosine over the whole run."""

    epochs: int = 3
    batch_sequences: int = 8
    lr: float = 2e-4
    lr_floor: float = 0.05
    warmup_steps: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 0.5
    seed: int = 0
    log_every: int = 20
    save_every_seconds: float = 300.0
    mixed_precision: bool = True  # bf16 products over fp32 weights
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


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


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to the floor."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.lr_floor + (1 - config.lr_floor) * cosine)


class Trainer:
    """Trains ``model`` on ``sequences``; state lives in ``folder`` and is picked up from there.

    Args:
        model: fp32 drafter; frozen parts have ``requires_grad`` off.
        on_log: receives one dict per logged interval.
    """

    def __init__(
        self,
        model: SpecBlockModel,
        sequences: list[Sequence],
        held_out: list[Sequence],
        config: TrainConfig,
        folder: Path,
        on_log: Callable[[dict], None] = lambda row: None,
    ):
        self.model, self.sequences, self.held_out = model, sequences, held_out
        self.config, self.folder, self.on_log = config, folder, on_log
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=config.betas, weight_decay=0.0
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.answer_tokens = 0
        per_epoch = math.ceil(len(sequences) / config.batch_sequences)
        self.total_steps = per_epoch * config.epochs
        folder.mkdir(parents=True, exist_ok=True)

    def batches(self) -> Iterator[list[Sequence]]:
        """The batches still to come, from the current step on."""
        lengths = [s.tokens.numel() for s in self.sequences]
        size, index = self.config.batch_sequences, 0
        for epoch in range(self.config.epochs):
            order = epoch_order(len(self.sequences), epoch, self.config.seed)
            for batch in length_grouped(order, lengths, size):
                if index >= self.step:
                    yield [self.sequences[i] for i in batch]
                index += 1

    def run(self, max_seconds: float | None = None) -> None:
        """Train to the end, or for ``max_seconds``; saves on the way and at the end.

        With a time limit the schedule runs by the share of time that has passed, so that the
        learning rate has come down when time is up.
        """
        started = saved = logged = time.monotonic()
        tally = None
        for batch in self.batches():
            now = time.monotonic()
            share = self.step / self.total_steps
            if max_seconds is not None:
                share = max(share, (now - started) / max_seconds)
                if share >= 1.0:
                    break
            part = self.train_step(batch, int(share * self.total_steps))
            tally = part if tally is None else merge(tally, part)
            self.answer_tokens += sum(s.answer_tokens for s in batch)
            if self.step % self.config.log_every == 0:
                self._log(tally, time.monotonic() - logged)
                tally, logged = None, time.monotonic()
            if time.monotonic() - saved > self.config.save_every_seconds:
                self.save()
                saved = time.monotonic()
        self.save()

    def train_step(self, sequences: list[Sequence], schedule_step: int) -> Tally:
        """One optimiser step on one batch."""
        self.model.train()
        rate = learning_rate(max(schedule_step, self.step), self.total_steps, self.config)
        if self.step < self.config.warmup_steps:
            rate = learning_rate(self.step, self.total_steps, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss, tally = self.loss(sequences, self.generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return tally

    def loss(self, sequences: list[Sequence], generator: torch.Generator) -> tuple[Tensor, Tally]:
        objective = self.config.objective
        batch = collate(sequences, (objective.blocks + 1) * self.model.config.block_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.mixed_precision):
            return total_loss(self.model, batch, objective, generator)

    @torch.no_grad()
    def evaluate(self) -> Tally:
        """Losses and accuracies on the held-out sequences, the same positions every time."""
        self.model.eval()
        generator = torch.Generator().manual_seed(self.config.seed)
        total = None
        ordered = sorted(self.held_out, key=lambda s: s.tokens.numel())
        for start in range(0, len(ordered), self.config.batch_sequences):
            chosen = ordered[start : start + self.config.batch_sequences]
            _, part = self.loss(chosen, generator)
            total = part if total is None else merge(total, part)
        return total

    def _log(self, tally: Tally, seconds: float) -> None:
        row = {
            "step": self.step,
            "of": self.total_steps,
            "answer_tokens": self.answer_tokens,
            "lr": self.optimiser.param_groups[0]["lr"],
            "seconds_per_step": seconds / self.config.log_every,
            **summary(tally),
        }
        path = self.folder / "log.csv"
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        self.on_log(row)

    def save(self) -> None:
        """Everything a resumed run needs, replaced atomically."""
        state = {
            "model": {k: v for k, v in self.model.state_dict().items() if "embed_tokens" not in k},
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "answer_tokens": self.answer_tokens,
            "config": asdict(self.config),
        }
        with atomic_file(self.folder / "state.pt") as path:
            torch.save(state, path)

    def resume(self) -> bool:
        """Pick up the saved state of ``folder``; False if there is none."""
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"], strict=False)
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.step, self.answer_tokens = state["step"], state["answer_tokens"]
        return True


def merge(one: Tally, other: Tally) -> Tally:
    """Sums of two tallies."""
    return Tally(
        one.rows + other.rows,
        one.hits + other.hits,
        one.live_hits + other.live_hits,
        one.live_rows + other.live_rows,
        one.loss + other.loss,
    )


def summary(tally: Tally) -> dict[str, float]:
    """Accuracy on the chain and loss by block and slot."""
    row = {}
    for block in range(tally.rows.shape[0]):
        for slot in range(tally.rows.shape[1]):
            rows = tally.rows[block, slot].item()
            if rows:
                name = f"b{block + 1}s{slot}"
                row[f"accuracy_{name}"] = round(tally.hits[block, slot].item() / rows, 4)
                row[f"loss_{name}"] = round(tally.loss[block, slot].item() / rows, 4)
    return row
