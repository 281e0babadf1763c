"""Where updates run: in gaps, between requests, in a thread, or in a process of their own.

An attempt is given all it needs and touches nothing that decoding uses. Whatever becomes of it, an
:class:`Attempt` comes back: what is raised, or a process that dies, is a failed one.
"""

from __future__ import annotations

import pickle
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from typing import Protocol

from specblock.adaptation.config import (
    BETWEEN_REQUESTS,
    IDLE,
    PROCESS,
    THREAD,
    AdaptationConfig,
)
from specblock.adaptation.containment import Contained
from specblock.adaptation.learning import process
from specblock.adaptation.learning.learner import (
    REVERTED,
    Attempt,
    Job,
    Learner,
    contained_attempt,
    failed,
)
from specblock.adaptation.learning.steps import Steps

_LONGEST_REST = 60.0  # seconds


class Runner(Protocol):
    """Runs one attempt at a time."""

    def start(self, job: Job) -> None:
        """Begin an attempt; the one before has been taken."""

    def take(self) -> Attempt | None:
        """The attempt that was started, once it is over; None before, and when it was taken."""

    def close(self) -> None:
        """Wait for what runs; :meth:`take` has it then."""


class BetweenRequests:
    """An attempt is over when it was started."""

    def __init__(self, learner: Learner, config: AdaptationConfig):
        self.learner = learner
        self._done: Attempt | None = None

    def start(self, job: Job) -> None:
        self._done = contained_attempt(self.learner, job)

    def take(self) -> Attempt | None:
        done, self._done = self._done, None
        return done

    def close(self) -> None:
        pass  # nothing runs


class InGaps:
    """An attempt goes on by a step whenever :meth:`work` is called."""

    def __init__(self, learner: Learner, config: AdaptationConfig):
        self.learner = learner
        self._job: Job | None = None
        self._steps: Steps[Attempt] | None = None
        self._done: Attempt | None = None

    def start(self, job: Job) -> None:
        self._job, self._steps = job, self.learner.attempting(job)

    @property
    def busy(self) -> bool:
        """Whether an attempt is under way."""
        return self._steps is not None

    def work(self) -> bool:
        """A step of the attempt; whether it is under way then."""
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

    def take(self) -> Attempt | None:
        done, self._done = self._done, None
        return done

    def close(self) -> None:
        """What is not over is given up: nobody waits for it."""
        self._steps = None


class InThread:
    """A thread that rests between attempts, for its duty to stay within the limit."""

    def __init__(self, learner: Learner, config: AdaptationConfig):
        self.learner, self.config = learner, config
        self._pool: Executor | None = None  # made for the first attempt: most never make one
        self._future: Future | None = None
        self._job: Job | None = None

    def start(self, job: Job) -> None:
        self._pool = self._pool or self._open()
        self._job, self._began = job, time.perf_counter()
        self._future = self._submit(job)

    def take(self) -> Attempt | None:
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        return self._result(future)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def _open(self) -> Executor:
        return ThreadPoolExecutor(1, "specblock-adapt")

    def _submit(self, job: Job) -> Future:
        return self._pool.submit(at_leisure, self.learner, job, self.config.duty)

    def _result(self, future: Future) -> Attempt:
        return future.result()


class InProcess(InThread):
    """A process with a copy of the learner, started for the first attempt and, should it die, again
    for the next. Weights and optimisers go there and back with every attempt."""

    def _open(self) -> Executor:
        copied = process.Copied.of(self.learner, self.config)
        return ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),  # a forked copy would inherit locked thread pools
            initializer=process.open_learner,
            initargs=(pickle.dumps(copied),),
        )

    def _submit(self, job: Job) -> Future:
        learner = self.learner
        current = None if learner.current is learner.original else learner.current
        state = learner.optimisers[job.arm].state_dict()
        # as bytes: tensors would go through shared memory, of which containers have little
        asked = pickle.dumps(process.Asked(job, current, state))
        try:
            return self._pool.submit(process.answer, asked)
        except BrokenProcessPool:  # it died between two attempts
            self._pool = self._open()
            return self._pool.submit(process.answer, asked)

    def _result(self, future: Future) -> Attempt:
        with Contained(f"the process of the {self._job.arm} update") as contained:
            told: process.Told = pickle.loads(future.result())
        if contained.error is not None:
            self.close()  # the next attempt gets another
            return failed(self._job, contained.error, time.perf_counter() - self._began)
        self.learner.optimisers[self._job.arm].load_state_dict(told.optimiser)
        if told.attempt.outcome == REVERTED:  # known here by identity
            return replace(told.attempt, weights=self.learner.original)
        return told.attempt


def at_leisure(learner: Learner, job: Job, duty: float) -> Attempt:
    """An attempt, and then a rest until the time it took is within ``duty``."""
    attempt = contained_attempt(learner, job)
    time.sleep(min(attempt.seconds * (1 / duty - 1), _LONGEST_REST))
    return attempt


def make_runner(learner: Learner, config: AdaptationConfig) -> Runner:
    """The runner that ``config.where`` names."""
    kinds = {
        IDLE: InGaps,
        BETWEEN_REQUESTS: BetweenRequests,
        THREAD: InThread,
        PROCESS: InProcess,
    }
    return kinds[config.where](learner, config)
