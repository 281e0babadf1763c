"""One update from feedback to a verdict, on a copy of the drafter; the live one is not touched."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from specblock.adaptation.config import AdaptationConfig
from specblock.adaptation.feedback.buffer import Record, as_drafted
from specblock.adaptation.learning.arms import (
    ARMS,
    FIT,
    HEADS,
    VOCABULARY,
    folded,
    master_of,
    put_weights,
    set_vocabulary,
    trainable,
    weights_of,
)
from specblock.adaptation.learning.beginning import Beginning
from specblock.adaptation.learning.jobs import Job
from specblock.adaptation.learning.judge import compare, judging
from specblock.adaptation.learning.preemption import Preemption
from specblock.drafters.objectives.noise import mixed_seed
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.specblock.objective import ObjectiveConfig, SpecBlockObjective
from specblock.steps import Steps, Stopwatch
from specblock.training.evaluate.evaluator import TrainingLoss, make_batch

Weights = dict[str, Tensor]

BETTER, NOT_BETTER, NOT_FINITE, REVERTED = "better", "not better", "not finite", "reverted"
FAILED = "failed"  # an exception, or a process that died


@dataclass(frozen=True)
class Attempt:
    """What came of a job.

    ``gain`` of the trained weights over those in use, ``total_gain`` of the weights to use from
    now on over the drafter's original ones, both shares of decoding seconds. ``weights`` is the
    master's to use from now on, None where nothing changes. ``tau``: what the weights to use from
    now on were judged to be accepted for, where they were.
    """

    arm: str
    outcome: str
    gain: float
    total_gain: float | None
    seconds: float
    weights: Weights | None = None
    details: dict[str, Any] | None = None
    tau: float | None = None


def failed(job: Job, error: BaseException, seconds: float) -> Attempt:
    """The attempt at ``job`` that ended in ``error``."""
    details = {"error": f"{type(error).__name__}: {error}"}
    return Attempt(job.arm, FAILED, 0.0, None, seconds, None, details)


class Learner:
    """Holds the master copy, its optimisers, and the weights that can be gone back to.

    ``start`` is what the drafter came with, ``original`` the same, or what its closed form made of
    nothing; ``current`` is what decodes, ``former`` what decoded before the last change, and
    ``candidate`` what was trained further, but is not known to be better yet.

    Args:
        beginning: of a drafter that came with nothing; None of all others.
    """

    def __init__(
        self, live: SpecBlockModel, config: AdaptationConfig, beginning: Beginning | None = None
    ):
        self.config, self.beginning = config, beginning
        self.master = master_of(live, config.rank, config.seed)
        self.start = self._weights()
        self.original = self.current = self.former = self.start
        self.candidate: Weights | None = None
        self.preemption = Preemption()
        self._reset_optimisers()
        objective = SpecBlockObjective(
            ObjectiveConfig(positions=config.positions), self.master.config.block_size
        )
        self._loss = TrainingLoss(self.master, objective, mixed_precision=config.mixed_precision)

    @property
    def begun(self) -> bool:
        """Whether what decodes can draft: everything but a drafter that came with nothing."""
        return self.beginning is None or self.original is not self.start

    def _weights(self) -> Weights:
        """A copy of the master's, with the draft vocabulary where it may change."""
        chosen = {} if self.beginning is None else {VOCABULARY: self.master.t2d.clone()}
        return weights_of(self.master) | chosen

    def _put(self, weights: Weights) -> None:
        """Weights of :meth:`_weights` into the master."""
        self._draft_from(weights.get(VOCABULARY))
        put_weights(self.master, {n: t for n, t in weights.items() if n != VOCABULARY})

    def _draft_from(self, vocabulary: Tensor | None) -> None:
        if vocabulary is not None and not torch.equal(vocabulary, self.master.t2d):
            set_vocabulary(self.master, vocabulary, self.beginning.head)

    def _optimiser(self, arm: str) -> torch.optim.Optimizer:
        parameters = trainable(self.master, arm)
        heads = set(trainable(self.master, HEADS))
        rates = self.config.heads_lr, self.config.layers_lr
        if self.beginning is not None:
            rates = (self.config.fresh_lr,) * 2
        own = [
            [parameters[n] for n in parameters if (n in heads) is head] for head in (True, False)
        ]
        groups = [{"params": p, "lr": rate} for p, rate in zip(own, rates, strict=True) if p]
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)

    def attempting(self, job: Job) -> Steps[Attempt]:
        """Train, judge, and say what to use, in steps of ``config.step_records`` records; one at a
        time. ``current`` changes only with :meth:`adopt`."""
        watch = Stopwatch()
        if job.arm == FIT:
            return (yield from self._fitting(job, watch))
        self._put(self.current)
        before = yield from watch.beside(self._judge(job))
        if self.candidate is not None:
            self._put(self.candidate)
        self._draft_from(job.vocabulary)
        finite = yield from watch.beside(self._train(job, watch))
        trained = self._weights()
        if not finite or not all(bool(t.isfinite().all()) for t in trained.values()):
            self.optimisers[job.arm] = self._optimiser(job.arm)  # its moments are spoilt
            self.candidate = None
            return Attempt(job.arm, NOT_FINITE, 0.0, None, watch.seconds)
        after = yield from watch.beside(self._judge(job))
        at_origin = self.current is self.original
        if at_origin:
            origin = before
        else:
            self._put(self.original)
            origin = yield from watch.beside(self._judge(job))
        return self._verdict(job, trained, (before, after, origin), at_origin, watch.seconds)

    def _fitting(self, job: Job, watch: Stopwatch) -> Steps[Attempt]:
        """The closed form on the job's records; what to go on from if a round of it costs less than
        the plain steps that it saves."""
        self._put(self.start)
        self._draft_from(job.vocabulary)
        sequences = [as_drafted(record, self.master.t2d) for record in job.batches[0]]
        self.beginning.tried_with = sum(len(sequence.tokens) for sequence in sequences)
        yield from watch.beside(self.beginning.fitting(self.master, sequences))
        fitted = self._weights()
        found = yield from watch.beside(self._judge(job))
        cost = self.beginning.round_cost()
        paid = compare(found, torch.full_like(found, cost))
        details = {
            "ratio": round(paid.ratio, 5),
            "error": round(paid.error, 5) if math.isfinite(paid.error) else None,
            "held_out": len(job.held_out),
            "tau_after": round(found.mean().item(), 4),
            "round_cost": round(cost, 4),
        }
        if not paid.better(self.config.accept_z):
            return Attempt(job.arm, NOT_BETTER, 0.0, None, watch.seconds, None, details)
        gain, tau = paid.gain, found.mean().item()
        return Attempt(job.arm, BETTER, gain, gain, watch.seconds, fitted, details, tau)

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
        # what is neither better nor worse by more than noise is trained on from
        undecided = outcome == NOT_BETTER and not compare(before, after).better(z)
        self.candidate = trained if undecided else None
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
        tau = chosen.mean().item()
        return Attempt(job.arm, outcome, gain, total, seconds, weights, details, tau)

    def _judge(self, job: Job) -> Steps[Tensor]:
        positions, most = self.config.judge_positions, self.config.step_records
        asked = self.master, job.held_out, positions, job.seed, most
        return judging(*asked, self.preemption)

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
                asked = partial(self._gradients, part, tuple(parameters.values()), seed)
                loss, gradients = yield from self.preemption.whole(asked)
                share = len(part) / len(records)
                total += share * loss
                for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                    _add(parameter, share * gradient)
                yield
            norm = nn.utils.clip_grad_norm_(parameters.values(), self.config.clip)
            if not (math.isfinite(total) and math.isfinite(norm.item())):
                optimiser.zero_grad(set_to_none=True)
                return False
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.master.eval()
        return True

    def _gradients(
        self, records: list[Record], parameters: tuple[nn.Parameter, ...], seed: int
    ) -> tuple[float, tuple[Tensor, ...]]:
        """The loss on ``records``, and its gradients."""
        batch = make_batch(
            [as_drafted(record, self.master.t2d) for record in records],
            list(range(len(records))),
            self._loss.objective.pad_rows,
        )
        device = self.master.norm.weight.device
        batch = replace(batch.to(device), features=batch.features.to(device).float())
        loss, _ = self._loss(batch, seed)
        if not loss.requires_grad:  # nothing in it can be drafted
            return loss.item(), tuple(map(torch.zeros_like, parameters))
        return loss.item(), torch.autograd.grad(loss, parameters, materialize_grads=True)

    def adopt(self, weights: Weights) -> None:
        """These decode from now on; the first ones of a drafter that came with nothing are what
        can be gone back to."""
        self.former, self.current, self.candidate = self.current, weights, None
        if not self.begun:
            self.original = weights
        if weights is self.original:
            self._reset_optimisers()

    def go_back(self) -> None:
        """Those before them decode again; moments gathered on the way are of other weights."""
        self.current, self.candidate = self.former, None
        if self.current is self.start:
            self.original = self.start
        self._reset_optimisers()

    def _reset_optimisers(self) -> None:
        self.optimisers = {arm: self._optimiser(arm) for arm in ARMS}

    def live_weights(self) -> Weights:
        """``current`` as an ordinary drafter's weights, in fp32; with its vocabulary, where that
        may change."""
        head = self.master.lm_head.weight.detach()
        if self.beginning is not None:
            head = self.beginning.head[self.current[VOCABULARY].to(self.beginning.head.device)]
            head = head.float()
        return folded(head, self.current)


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
