"""One update from feedback to a verdict, on a copy of the drafter; the live one is not touched."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.containment import Contained
from specblock.adaptation.feedback.buffer import Record
from specblock.adaptation.learning.arms import (
    ARMS,
    HEADS,
    folded,
    master_of,
    put_weights,
    trainable,
    weights_of,
)
from specblock.adaptation.learning.judge import compare, judging
from specblock.adaptation.learning.steps import Steps, Stopwatch, drained
from specblock.drafters.objectives.noise import mixed_seed
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.objective import ObjectiveConfig, SpecBlockObjective
from specblock.training.evaluate.evaluator import TrainingLoss, make_batch

Weights = dict[str, Tensor]

BETTER, NOT_BETTER, NOT_FINITE, REVERTED = "better", "not better", "not finite", "reverted"
FAILED = "failed"  # an exception, or a process that died


@dataclass(frozen=True)
class Job:
    """What one update needs: drawn before it starts, so that it may run beside decoding.

    ``batches``: the records of each step.
    """

    arm: str
    batches: list[list[Record]]
    held_out: list[Record]
    seed: int


@dataclass(frozen=True)
class Attempt:
    """What came of a job.

    ``gain`` of the trained weights over those in use, ``total_gain`` of the weights to use from
    now on over the drafter's original ones, both shares of decoding seconds. ``weights`` is the
    master's to use from now on, None where nothing changes.
    """

    arm: str
    outcome: str
    gain: float
    total_gain: float | None
    seconds: float
    weights: Weights | None = None
    details: dict[str, Any] | None = None


def failed(job: Job, error: BaseException, seconds: float) -> Attempt:
    """The attempt at ``job`` that ended in ``error``."""
    details = {"error": f"{type(error).__name__}: {error}"}
    return Attempt(job.arm, FAILED, 0.0, None, seconds, None, details)


def contained_attempt(learner: Learner, job: Job) -> Attempt:
    """:meth:`Learner.attempt`, or a failed one for whatever it raises."""
    began = time.perf_counter()
    with Contained(f"the {job.arm} update") as contained:
        return learner.attempt(job)
    return failed(job, contained.error, time.perf_counter() - began)


class Learner:
    """Holds the master copy, its optimisers, and the weights that can be gone back to.

    ``original`` is what the drafter came with, ``current`` what decodes, ``former`` what decoded
    before the last change.
    """

    def __init__(self, live: SpecBlockModel, config: AdaptationConfig):
        self.config = config
        self.master = master_of(live, config.rank, config.seed)
        self.original = weights_of(self.master)
        self.current = self.former = self.original
        self._reset_optimisers()
        objective = SpecBlockObjective(
            # the loss that the arms' rates were chosen and measured with
            ObjectiveConfig(positions=config.positions, mean_over_valid=True),
            self.master.config.block_size,
        )
        self._loss = TrainingLoss(self.master, objective, mixed_precision=config.mixed_precision)

    def _optimiser(self, arm: str) -> torch.optim.Optimizer:
        parameters = trainable(self.master, arm)
        heads = set(trainable(self.master, HEADS))
        groups = [
            {
                "params": [parameters[n] for n in parameters if n in heads],
                "lr": self.config.heads_lr,
            },
            {
                "params": [parameters[n] for n in parameters if n not in heads],
                "lr": self.config.layers_lr,
            },
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)

    def attempt(self, job: Job) -> Attempt:
        """Train, judge, and say what to use; ``current`` changes only with :meth:`adopt`."""
        return drained(self.attempting(job))

    def attempting(self, job: Job) -> Steps[Attempt]:
        """:meth:`attempt` in steps of ``config.step_records`` records; one at a time."""
        watch = Stopwatch()
        put_weights(self.master, self.current)
        before = yield from watch.beside(self._judge(job))
        finite = yield from watch.beside(self._train(job, watch))
        trained = weights_of(self.master)
        if not finite or not all(bool(t.isfinite().all()) for t in trained.values()):
            self.optimisers[job.arm] = self._optimiser(job.arm)  # its moments are spoilt
            return Attempt(job.arm, NOT_FINITE, 0.0, None, watch.seconds)
        after = yield from watch.beside(self._judge(job))
        at_origin = self.current is self.original
        if at_origin:
            origin = before
        else:
            put_weights(self.master, self.original)
            origin = yield from watch.beside(self._judge(job))
        return self._verdict(job, trained, (before, after, origin), at_origin, watch.seconds)

    def _verdict(
        self,
        job: Job,
        trained: Weights,
        judged: tuple[Tensor, Tensor, Tensor],
        at_origin: bool,
        seconds: float,
    ) -> Attempt:
        before, after, origin = judged
        z = self.config.accept_z
        found = compare(after, before)
        better = found.better(z) and after.mean() >= origin.mean()
        if better:
            outcome, weights, chosen = BETTER, trained, after
        elif not at_origin and compare(origin, before).better(z):
            outcome, weights, chosen = REVERTED, self.original, origin
        else:
            outcome, weights, chosen = NOT_BETTER, None, before
        stays = weights is self.original or (weights is None and at_origin)
        details = {
            "ratio": round(found.ratio, 5),
            "error": round(found.error, 5) if math.isfinite(found.error) else None,
            "held_out": len(job.held_out),
            "tau_before": round(before.mean().item(), 4),
            "tau_after": round(after.mean().item(), 4),
            "tau_original": round(origin.mean().item(), 4),
        }
        # what is not used gains nothing: its arm is charged with its cost alone
        gain = found.gain if better else 0.0
        total = 0.0 if stays else compare(chosen, origin).gain
        return Attempt(job.arm, outcome, gain, total, seconds, weights, details)

    def _judge(self, job: Job) -> Steps[Tensor]:
        positions, most = self.config.judge_positions, self.config.step_records
        return judging(self.master, job.held_out, positions, job.seed, most)

    def _train(self, job: Job, watch: Stopwatch) -> Steps[bool]:
        """Gradient steps on the master; False as soon as a loss or gradient is not finite."""
        parameters = trainable(self.master, job.arm)
        for parameter in self.master.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        optimiser = self.optimisers[job.arm]
        self.master.train()
        for number, records in enumerate(job.batches):
            if number and watch.seconds > self.config.max_update_seconds:
                break
            total, most = 0.0, self.config.step_records or len(records)
            for first in range(0, len(records), most):
                part = records[first : first + most]
                seed = mixed_seed(job.seed, number) + first
                total += self._add_gradients(part, len(part) / len(records), seed)
                yield
            norm = nn.utils.clip_grad_norm_(parameters.values(), self.config.clip)
            if not (math.isfinite(total) and math.isfinite(norm.item())):
                optimiser.zero_grad(set_to_none=True)
                return False
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.master.eval()
        return True

    def _add_gradients(self, records: list[Record], share: float, seed: int) -> float:
        """Those of ``share`` times the loss on ``records``; that loss."""
        batch = make_batch(
            [record.sequence for record in records],
            list(range(len(records))),
            self._loss.objective.pad_rows,
        )
        device = self.master.norm.weight.device
        batch = replace(batch.to(device), features=batch.features.to(device).float())
        loss, _ = self._loss(batch, seed)
        loss = share * loss
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def adopt(self, weights: Weights) -> None:
        """These decode from now on."""
        self.former, self.current = self.current, weights
        if weights is self.original:
            self._reset_optimisers()

    def go_back(self) -> None:
        """Those before them decode again; moments gathered on the way are of other weights."""
        self.current = self.former
        self._reset_optimisers()

    def _reset_optimisers(self) -> None:
        self.optimisers = {arm: self._optimiser(arm) for arm in ARMS}

    def live_weights(self) -> Weights:
        """``current`` as an ordinary drafter's weights, in fp32."""
        return folded(self.master.lm_head.weight.detach(), self.current)
