"""An attempt at an update, in steps: all at once, or one whenever nobody waits."""

from __future__ import annotations

import time

from specblock.adaptation.containment import Contained
from specblock.adaptation.learning.learner import Attempt, Job, Learner, failed
from specblock.adaptation.learning.preemption import Waiting
from specblock.steps import Steps

__all__ = ["Runner"]


class Runner:
    """Runs one attempt of ``learner`` at a time, a step whenever :meth:`work` is called."""

    def __init__(self, learner: Learner):
        self._learner = learner
        self._job: Job | None = None
        self._steps: Steps[Attempt] | None = None
        self._done: Attempt | None = None

    def start(self, job: Job) -> None:
        """Begin an attempt; the one before has been taken."""
        self._job, self._steps = job, self._learner.attempting(job)

    @property
    def busy(self) -> bool:
        """Whether an attempt is under way."""
        return self._steps is not None

    def work(self, waiting: Waiting | None = None) -> bool:
        """A step of the attempt, or less as soon as somebody is ``waiting``; whether it is under
        way then."""
        self._learner.preemption.waiting = waiting
        began = time.perf_counter()
        with Contained(f"the {self._job.arm} update") as contained:
            try:
                next(self._steps)
            except StopIteration as end:
                self._done, self._steps = end.value, None
        if contained.error is not None:
            seconds = time.perf_counter() - began
            self._done, self._steps = failed(self._job, contained.error, seconds), None
        return self.busy

    def finish(self) -> None:
        """All steps that are left."""
        while self.busy:
            self.work()

    def take(self) -> Attempt | None:
        """The attempt that was started, once it is over; None before, and when it was taken."""
        done, self._done = self._done, None
        return done

    def give_up(self) -> None:
        """What is not over is nobody's: nothing of it is used."""
        self._steps = None
