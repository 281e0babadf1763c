"""The training loop: AdamW over epochs of sequences, in one process or several, resumable.

Everything that a step does is a function of (weights, optimiser, seed, step number), so a run
that was killed ends with the same weights, to the bit, as one that was not. A run with a time
limit is the exception, because its learning rate follows the clock; the seconds spent are part of
the state, so it goes on from where it was.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specblock.drafters.objectives.batch import Objective, Tally, summary
from specblock.drafters.objectives.noise import mixed_seed
from specblock.stored import restoring
from specblock.training.distributed.sharding import gathered, load_gathered, whole
from specblock.training.distributed.workers import Workers
from specblock.training.evaluate.evaluator import Evaluation, Evaluator, TrainingLoss, make_batch
from specblock.training.features.corpus import Corpus
from specblock.training.loop.checkpoints import random_states, restore_random_states, save_state
from specblock.training.loop.interrupt import Interrupt
from specblock.training.loop.monitor import Monitor, columns
from specblock.training.loop.plan import micro_batches, steps_from
from specblock.training.loop.state import check_identity, newest_state, version

Report = Callable[[str], None]
OnSave = Callable[[nn.Module, int, int], None]  # network, steps, answer tokens


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    A step takes ``batch_sequences`` times ``accumulation`` sequences in every process. ``lr`` peaks
    after ``warmup_steps`` and falls to ``lr_floor`` of itself along a cosine over the whole run.
    """

    epochs: int = 3
    batch_sequences: int = 8
    accumulation: int = 1
    lr: float = 2e-4
    lr_floor: float = 0.05
    warmup_steps: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 0.5  # of the gradient's norm over all parameters and processes
    seed: int = 0
    mixed_precision: bool = True  # bf16 products over fp32 weights
    sharded: bool = False  # several processes divide the trained weights among them (FSDP2)
    log_every: int = 20  # steps
    eval_every_seconds: float = 600.0
    save_every_seconds: float = 300.0
    keep_checkpoints: int = 3
    tensorboard: bool = False
    wandb: bool = False

    def decisive(self) -> dict[str, Any]:
        """The settings that the trained weights depend on."""
        without_effect = (
            "sharded",
            "log_every",
            "eval_every_seconds",
            "save_every_seconds",
            "keep_checkpoints",
            "tensorboard",
            "wandb",
        )
        return {key: value for key, value in asdict(self).items() if key not in without_effect}


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to the floor."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.lr_floor + (1 - config.lr_floor) * cosine)


class Trainer:
    """Trains ``model`` on ``sequences``; its state lives in ``folder`` and is picked up from there.

    Args:
        model: fp32 drafter; frozen parts have ``requires_grad`` off.
        sequences: what to train on; read again in every epoch.
        evaluator: is asked every ``eval_every_seconds`` and by :meth:`evaluate`.
        workers: the processes that train together; made for the model's device if not given.
        report: is told what happens, one line at a time, in the main process alone.
        origin: what is trained on what, see :func:`specblock.training.loop.state.origin_of`.
        on_save: is shown the network after every save, in the main process alone.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        sequences: Corpus,
        config: TrainConfig,
        folder: Path,
        *,
        evaluator: Evaluator | None = None,
        workers: Workers | None = None,
        report: Report = lambda line: None,
        origin: Mapping[str, Any] | None = None,
        on_save: OnSave | None = None,
    ):
        device = next(model.parameters()).device
        self.workers = workers or Workers(cpu=device.type == "cpu")
        self.model, self.objective, self.sequences = model, objective, sequences
        self.config, self.folder, self.evaluator = config, folder, evaluator
        self.origin, self._on_save = dict(origin or {}), on_save
        self.loss = TrainingLoss(model, objective, mixed_precision=config.mixed_precision)
        self.network = self.workers.wrap(self.loss, sharded=config.sharded)
        self._report = report if self.workers.is_main else lambda line: None
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._names, self.parameters = [n for n, _ in named], [p for _, p in named]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=config.betas, weight_decay=0.0
        )
        self._sizes = sequences.sizes
        self._size = config.batch_sequences * config.accumulation * self.workers.count
        self.total_steps = math.ceil(len(self._sizes) / self._size) * config.epochs
        self.step, self.answer_tokens, self.elapsed = 0, 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self._monitor = Monitor(folder, tensorboard=config.tensorboard, wandb=config.wandb)
        self._tables: dict[str, int] | None = {}
        self._evaluated: tuple[int, Evaluation] | None = None

    def run(self, max_seconds: float | None = None) -> bool:
        """Train to the end, or for ``max_seconds``; saves on the way and at the end.

        With a time limit the schedule runs by the share of time that has passed, so that the
        learning rate has come down when time is up. Returns False if SIGTERM ended it before.
        """
        self._open_tables()
        config, spent, stopped = self.config, self.elapsed, False
        lengths = [length for length, _ in self._sizes]
        began = saved = evaluated = time.monotonic()
        pace = _Pace(self.step)
        with Interrupt() as interrupt:
            for step in steps_from(self.step, lengths, self._size, config.epochs, config.seed):
                now = time.monotonic()
                self.elapsed, asked, unsaved, unjudged = self.workers.maximum(
                    spent + now - began, float(interrupt.asked), now - saved, now - evaluated
                )
                if unjudged > config.eval_every_seconds:
                    self.evaluate()
                    evaluated = time.monotonic()
                if unsaved > config.save_every_seconds and self.step:
                    self.save()
                    saved = time.monotonic()
                share = self._share(max_seconds)
                stopped = asked > 0
                if stopped or share >= 1.0:
                    break
                pace.tallies.append(self.train_step(step, int(share * self.total_steps)))
                if self.step % config.log_every == 0:
                    self._log(pace)
                    pace = _Pace(self.step)
            self.elapsed = max(self.elapsed, spent + time.monotonic() - began)
            self.save()
        return not stopped

    def _share(self, max_seconds: float | None) -> float:
        """How much of the run lies behind, by steps or, where that is more, by the clock."""
        share = self.step / self.total_steps
        return share if max_seconds is None else max(share, self.elapsed / max_seconds)

    def train_step(self, step: list[int], schedule_step: int) -> Tally:
        """One optimiser step on the sequences with these numbers, this process's part of them."""
        self.network.train()
        place = self.step if self.step < self.config.warmup_steps else schedule_step
        rate = learning_rate(max(place, self.step), self.total_steps, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        seed, workers = mixed_seed(self.config.seed, self.step), self.workers
        parts = micro_batches(step, workers.rank, workers.count, self.config.accumulation)
        tallies = []
        for index, keys in enumerate(parts):
            batch = make_batch(self.sequences.read(keys), keys, self.objective.pad_rows)
            last = index == len(parts) - 1
            with nullcontext() if last else workers.unsynchronised(self.network):
                loss, tally = self.network(batch.to(workers.device), seed)
                (loss / len(parts)).backward()
            tallies.append(tally)
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.answer_tokens += sum(self._sizes[key][1] for key in step)
        self.step += 1
        return Tally.total(tallies)

    def evaluate(self) -> Evaluation | None:
        """Ask the evaluator and write ``eval.csv``; None without one. For all processes."""
        if self.evaluator is None:
            return None
        if self._evaluated is not None and self._evaluated[0] == self.step:
            return self._evaluated[1]
        self._open_tables()
        with whole(self.network):
            found = self.evaluator(self.loss, self.workers)
        self._evaluated = self.step, found
        if self.workers.is_main:
            tau = found.accepted_length
            row = {"step": self.step, "answer_tokens": self.answer_tokens, "tau": tau}
            self._monitor.write("eval", {**row, **columns(found.tally)})
            self._monitor.draw()
            self._report(f"step {self.step}, held out: {found.row()}")
        return found

    def _log(self, pace: _Pace) -> None:
        """A row of ``log.csv``, over all processes."""
        tally = Tally(*(self.workers.total(part) for part in Tally.total(pace.tallies).sums()))
        if not self.workers.is_main:
            return
        row = {
            "step": self.step,
            "of": self.total_steps,
            "answer_tokens": self.answer_tokens,
            "lr": self.optimiser.param_groups[0]["lr"],
            "seconds_per_step": pace.seconds / (self.step - pace.step),
        }
        self._monitor.write("log", {**row, **columns(tally)})
        self._report(str({**row, **summary(tally)}))

    def _open_tables(self) -> None:
        """Before anything is written: cut the tables to where this run begins."""
        if self._tables is not None and self.workers.is_main:
            self._monitor.start(self.step, self._tables)
        self._tables = None

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a saved state to be this run's."""
        digest = hashlib.sha256(repr(self._sizes).encode()).hexdigest()
        settings = {**self.config.decisive(), "processes": self.workers.count}
        return {**settings, "objective": repr(self.objective), "answers": digest, **self.origin}

    def save(self) -> None:
        """Everything a resumed run needs; all processes must call this, the main one writes."""
        kept = {*self._names, *(name for name, _ in self.model.named_buffers())}
        weights = gathered({k: v for k, v in self.model.state_dict().items() if k in kept})
        moments = gathered(self.optimiser.state_dict())
        if not self.workers.is_main:
            return
        state = {
            "model": weights,
            "names": self._names,
            "optimiser": moments,
            "random": random_states(),
            "step": self.step,
            "answer_tokens": self.answer_tokens,
            "elapsed": self.elapsed,
            "tables": self._monitor.lengths(),
            "identity": self._identity(),
            "version": version(),
        }
        save_state(self.folder, self.step, state, self.config.keep_checkpoints)
        if self._on_save is not None:
            with whole(self.network):
                self._on_save(self.model, self.step, self.answer_tokens)

    def resume(self) -> bool:
        """Pick up the newest whole state of ``folder``; False if there is none.

        Raises :class:`CheckpointError` if it is another run's or no state, or all are damaged.
        """
        found = newest_state(self.folder, self._report)
        if found is None:
            return False
        path, state = found
        mine, theirs = {"weights": self._names}, {"weights": state.names}
        mine, theirs = {**self._identity(), **mine}, {**state.identity, **theirs}
        check_identity(path, mine, theirs, self._report)
        with restoring(path, "model, optimiser or random"):
            load_gathered(self.model, self.optimiser, state.model, state.optimiser)
            restore_random_states(state.random)
        self.step, self.answer_tokens = state.step, state.answer_tokens
        self.elapsed, self._tables = state.elapsed, state.tables
        return True


class _Pace:
    """The steps since the last row of the log."""

    def __init__(self, step: int):
        self.step, self.tallies, self._began = step, [], time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
