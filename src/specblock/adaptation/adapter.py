"""A drafter that learns while it serves: collects feedback, decides, updates, watches, goes back.

Everything here runs between rounds and requests; weights change hands between two rounds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from filelock import FileLock

from specblock.adaptation.calibrations import Calibrations
from specblock.adaptation.config import IDLE, MEMORY, AdaptationConfig
from specblock.adaptation.containment import Contained
from specblock.adaptation.deciding.bandit import SKIP, GainBandit, Prior
from specblock.adaptation.deciding.journal import Journal
from specblock.adaptation.deciding.ledger import Ledger, UpdateCosts
from specblock.adaptation.deciding.watch import TauWatch
from specblock.adaptation.feedback.buffer import FeedbackBuffer, stratum_of
from specblock.adaptation.feedback.observer import FeedbackObserver, TargetReducer
from specblock.adaptation.feedback.served_tokens import ServedTokens
from specblock.adaptation.feedback.signals import CONTEXT, Signals
from specblock.adaptation.gap_work import GapWork
from specblock.adaptation.learning.arms import ARMS, COST_SHARES, FIT, swap
from specblock.adaptation.learning.asking import Asking
from specblock.adaptation.learning.beginning import FIT_GAIN, Beginning
from specblock.adaptation.learning.jobs import job_of
from specblock.adaptation.learning.learner import REVERTED, Attempt, Learner
from specblock.adaptation.learning.preemption import Waiting
from specblock.adaptation.learning.runners import Runner
from specblock.adaptation.state import resume, save
from specblock.adaptation.status import status_of
from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.memory import TextMemory
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.engine.statistics import GenerationStats
from specblock.errors import ConfigError

_log = logging.getLogger("specblock")
_OVERDUE = 5  # times the seconds between two saves, when no gap came to save in
_LEAST_HELD_OUT = 2  # records; fewer give no spread to judge by


class Adaptation:
    """Adapts ``drafter`` in place.

    Args:
        drafter: a SpecBlock drafter.
        config: see :class:`AdaptationConfig`; its folder is resumed from.
        budgets: whose calibration follows the drafter; the first is that of greedy decoding.
        target: its digest, whose folder it must be; None does not look.
        beginning: of a drafter that came with nothing: it is not asked until it pays.

    Raises:
        ConfigError: the drafter is of another kind, or the folder another drafter's.
    """

    def __init__(
        self,
        drafter: Drafter,
        config: AdaptationConfig,
        budgets: Iterable[Budget] = (),
        target: str | None = None,
        beginning: Beginning | None = None,
    ):
        model = getattr(drafter, "model", None)
        if not isinstance(model, SpecBlockModel):
            raise ConfigError(
                "Only a SpecBlock drafter can learn: choose one with --drafter, or leave out adapt."
            )
        self.drafter, self.config, self.target = drafter, config, target
        self.lock: FileLock | None = None  # of the folder
        self.budgets = list({id(b): b for b in budgets if b is not None}.values())
        self.calibrations = Calibrations(self.budgets)
        self.learner = Learner(model, config, beginning)
        arms = ARMS if beginning is None else (FIT, *ARMS)
        size = model.config.vocab_size, model.config.draft_vocab_size
        self.served = None if beginning is None else ServedTokens(*size)
        self.buffer = FeedbackBuffer(
            int(config.buffer_mib * 2**20),
            config.held_out_share,
            config.half_life_requests,
            config.seed,
        )
        self.memory = TextMemory.of_size(config.memory_mib, len(drafter.feature_layers))
        self.signals, self.journal = Signals(), Journal(arms)
        prior = Prior(gain=config.prior_gain)
        self.bandit = GainBandit(
            arms, len(CONTEXT), seed=config.seed, discount=config.discount, prior=prior,
            priors={FIT: replace(prior, gain=FIT_GAIN)},
        )  # fmt: skip
        self.ledger = Ledger(config.exploration_seconds, config.exploration_share)
        shares = {arm: COST_SHARES[arm] for arm in arms}
        self.costs = UpdateCosts(shares, config.first_update_seconds)
        self.watch = TauWatch(config.watch_rounds, config.watch_z)
        self.total_gain = self.former_gain = 0.0
        self.asking = Asking(self.budgets, self.learner)
        self.last_swap: tuple[str, tuple[float, ...]] | None = None  # its arm and context
        self.reducer = TargetReducer(config.target_top)
        self._runner = Runner(self.learner)
        self.gaps = GapWork(self._runner, self.ledger, used=config.where == IDLE)
        self._asked: tuple[str, tuple[float, ...]] | None = None  # the running one's
        self._saved = time.monotonic()
        if config.folder is not None and resume(self):
            swap(model, self.learner.live_weights())
            self.asking.apply()

    def observer(self, prompt: list[int]) -> FeedbackObserver:
        """Collects the feedback of one request (a prompt's token ids)."""
        return FeedbackObserver(
            self.reducer,
            stratum_of(prompt),
            max_prompt_pairs=self.config.max_prompt_pairs,
            max_answer_pairs=self.config.max_answer_pairs if self._collects() else 0,
            on_round=self._round_done,
        )

    def finished(
        self, observer: FeedbackObserver, stats: GenerationStats, *, complete: bool = True
    ) -> None:
        """A request has ended; unless it was broken off, the time for an update has come."""
        with Contained("collecting feedback") as absorbing:
            self._absorb(observer, stats)
        self.journal.failures += absorbing.error is not None
        if complete:
            with Contained("deciding on an update"):
                self.step()

    def step(self) -> None:
        """Between requests: decide, update, save."""
        if self._asked is None and self._ready():
            self._decide()
        self._save_sometimes(_OVERDUE if self.gaps.used else 1)

    def close(self) -> None:
        """Save; the folder is others' then. An update that is not over is given up."""
        self._runner.give_up()
        self.save()
        if self.lock is not None:
            self.lock.release()

    def rest(self, waiting: Waiting) -> bool:
        """A step of an update in gaps, unless somebody is ``waiting``; whether there is more."""
        more = self.gaps.work(waiting)
        self._collect()
        if not more:
            self._save_sometimes(1)
        return more

    def came(self, gap: float, delays: list[float]) -> None:
        """Requests ended a gap of so many seconds; each waited for so long until work made room."""
        self.gaps.ended(gap, delays)

    def _round_done(self, tokens: int) -> None:
        """After every round: a roll-back is the only change of weights while a request runs."""
        if self.watch.add(tokens) == "dropped":
            self._roll_back()

    def _collects(self) -> bool:
        """Whether feedback is worth its collection: the bandit may soon spend it on an update."""
        if self.config.policy != "bandit":
            return self.config.policy != MEMORY
        if not self.asking.pays:
            return True
        cheapest = self.config.collect_share * min(self.costs.estimate(self.gaps.price).values())
        return self.ledger.allowance >= cheapest

    def _absorb(self, observer: FeedbackObserver, stats: GenerationStats) -> None:
        if self.memory is not None:
            observer.remember_in(self.memory, stats.new_tokens)
        self.signals.add(observer.signals(), stats.new_tokens, stats.decode_seconds)
        self.ledger.decode(stats.decode_seconds, self.total_gain * self.signals.asked_share)
        record = observer.record(stats.new_tokens)
        if record is not None:
            self.buffer.add(record)
            if self.served is not None:
                self.served.add(record.sequence.tokens[record.sequence.start])

    def _ready(self) -> bool:
        fresh = self.signals.fresh_requests >= self.config.min_requests
        # while a change is being watched, another would hide what it did
        free = self.config.policy != MEMORY and not self.watch.watching
        return fresh and free and self._can_judge() and (self.learner.begun or self._can_begin())

    def _can_judge(self) -> bool:
        held_out = self.buffer.held_out(self.config.judge_records)
        return len(held_out) >= _LEAST_HELD_OUT and len(self.buffer) > len(held_out)

    def _can_begin(self) -> bool:
        pairs = (len(record.sequence.tokens) for record in self.buffer.training())
        return sum(pairs) >= self.learner.beginning.wanted_pairs(self.learner.master)

    def _decide(self) -> None:
        context = self.signals.context(self.config.horizon_tokens)
        arm = self._choose(context)
        if arm == SKIP:
            self.signals.fresh_requests = 0  # ask again when as many more have come
            return
        vocabulary = None if self.served is None else self.served.vocabulary()
        job = job_of(arm, self.buffer, self.config, 1 + self.journal.attempts, vocabulary)
        self._runner.start(job)
        self._asked = arm, context
        if not self.gaps.used:
            self._runner.finish()
        self._collect()

    def _choose(self, context: tuple[float, ...]) -> str:
        begun = self.learner.begun
        if self.config.policy != "bandit":
            return self.config.policy.removeprefix("always-") if begun else FIT
        horizon = self.signals.horizon(self.config.horizon_tokens)
        # a drafter that does not pay is asked in no round yet, and would be in all
        share = self.signals.asked_share if self.asking.pays else 1.0
        scale = horizon * (self.signals.seconds_per_token.fast or 0.0) * share
        costs, arms = self.costs.estimate(self.gaps.price), ARMS if begun else (FIT,)
        asked = (context, scale, costs, self.ledger.allowance, arms)
        decision = self.bandit.decide(*asked)
        self.journal.decided(*asked, decision)
        return decision.arm

    def _collect(self) -> None:
        """Take in an attempt that is over."""
        if self._asked is None:
            return
        attempt = self._runner.take()
        if attempt is not None:
            (arm, context), self._asked = self._asked, None
            self._integrate(attempt, arm, context)

    def _integrate(self, attempt: Attempt, arm: str, context: tuple[float, ...]) -> None:
        """Account for an attempt and, if it says so, change the weights."""
        self.gaps.pay(attempt.seconds)
        self.costs.observe(arm, attempt.seconds)
        self.bandit.learn(arm, context, attempt.gain)
        self.journal.learned(arm, context, attempt.gain)
        self.journal.attempted(attempt)
        self.signals.updated()
        _log.debug("adaptation: %s %s %s", arm, attempt.outcome, attempt.details)
        self.former_gain = self.total_gain
        if attempt.total_gain is not None:
            self.total_gain = attempt.total_gain
        self.asking.judged(attempt.tau)
        if attempt.weights is not None:
            self.learner.adopt(attempt.weights)
            if self._put_to_use() and self.asking.pays:  # else no round shows the difference
                self.calibrations.changed()
                self.last_swap = None if attempt.outcome == REVERTED else (arm, context)
                self.watch.begin()
        self.asking.apply()

    def _put_to_use(self) -> bool:
        """The learner's current weights into the live drafter; the former stay if that fails."""
        with Contained("changing the drafter's weights") as contained:
            swap(self.drafter.model, self.learner.live_weights())
        if contained.error is not None:
            self.learner.go_back()
            self.total_gain = self.former_gain
            self.journal.failures += 1
        return contained.error is None

    def _roll_back(self) -> None:
        """The accepted length has dropped: the weights before are back, and the arm is charged."""
        lost = self.watch.relative_drop()
        self.watch.rolled_back()
        self.learner.go_back()
        self.asking.forget()
        if self._put_to_use():
            self.calibrations.go_back()
        self.total_gain = self.former_gain
        self.buffer.clear()  # the feedback that taught this may be no feedback at all
        if self.last_swap is not None:
            arm, context = self.last_swap
            self.bandit.learn(arm, context, -lost)
            self.journal.learned(arm, context, -lost)
            self.journal.rolled_back(arm, lost)
        self.last_swap = None
        _log.warning("adaptation: the accepted length fell by %.0f %%: rolled back", 100 * lost)

    def _save_sometimes(self, late: int) -> None:
        due = time.monotonic() - self._saved >= late * self.config.save_every_seconds
        if due and self._asked is None:
            self.save()

    def save(self) -> None:
        """Write the state to the config's folder, if there is one; whole or not at all."""
        if self.config.folder is None:
            return
        began = time.monotonic()
        with Contained("saving the adaptation's state"):
            save(self)
        self._saved = time.monotonic()
        self.gaps.pay(self._saved - began)

    def status(self) -> dict[str, Any]:
        """Arms, pulls, gains, costs, roll-backs, as JSON values."""
        return status_of(self)
