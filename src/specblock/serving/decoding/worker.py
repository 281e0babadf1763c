"""The one thread that computes: it steps while the engine is busy, and sleeps otherwise."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Condition, Thread
from typing import Protocol

from specblock.engine.engine import Engine, Handle
from specblock.own import Own
from specblock.serving.decoding.pieces import Piece, ServedAnswer
from specblock.serving.watching.watch import Watch

__all__ = ["Deliver", "Worker"]

# new pieces of an answer, whether it is over, and what ended it before its end; called in the
# worker's thread
Deliver = Callable[[list[Piece], bool, Exception | None], None]
_log = logging.getLogger("specblock")
_UNSAID_SECONDS = 0.5  # for which a step is waited for without a word


class Learner(Protocol):
    """What an adaptation is to the thread that computes."""

    def rest(self, waiting: Callable[[], bool]) -> bool:
        """A small step of learning, given up when somebody waits. Whether there is more to do."""

    def came(self, gap: float, delays: list[float]) -> None:
        """Requests ended a gap of so many seconds; each waited until the step made room."""


class Worker:
    """Computes what is asked of ``engine`` and hands out its pieces.

    Args:
        watch: is told what was computed.
        learner: learns in the gaps between requests.
    """

    def __init__(self, engine: Engine, watch: Watch, learner: Learner | None = None):
        self._engine, self._watch, self._learner = engine, watch, learner
        self._arrived: list[float] = []  # when, of those that came in the gap at hand
        self._wake = Condition()  # of what follows
        self._readers: dict[ServedAnswer, tuple[Handle[Piece], Deliver]] = {}
        self._leaving: list[ServedAnswer] = []
        self._stopping = False
        self._thread = Thread(target=self._run, name="specblock-steps", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop_learning(self) -> None:
        """Begin no step of learning any more; what is asked goes on."""
        with self._wake:
            self._learner = None
            self._wake.notify()

    def stop(self, seconds: float) -> bool:
        """Drop what is under way and end the thread; False if its step takes longer than this."""
        with self._wake:
            self._stopping = True
            self._leaving += self._readers
            self._wake.notify()
        self._thread.join(_UNSAID_SECONDS)
        if self._thread.is_alive():
            _log.warning("Waiting for the step under way, %g seconds at most.", seconds)
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def ask(self, answers: list[ServedAnswer], deliver: list[Deliver]) -> None:
        """Let the engine write ``answers``, all or none.

        Raises what :meth:`Engine.add` does.
        """
        handles: list[Handle[Piece]] = []
        try:
            for answer in answers:
                handles.append(self._engine.add(answer))  # noqa: PERF401  (some are in, if it raises)
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        with self._wake:
            for answer in answers:
                self._watch.asked(answer)
            self._arrived += [time.perf_counter()] * len(answers)
            self._readers |= dict(zip(answers, zip(handles, deliver, strict=True), strict=True))
            self._wake.notify()

    def drop(self, answer: ServedAnswer) -> None:
        """Nobody wants the rest. Nothing is delivered afterwards but what is on its way."""
        with self._wake:
            if answer in self._readers:
                self._leaving.append(answer)
                self._wake.notify()

    def _run(self) -> None:
        while self._await_work():
            began = time.perf_counter()
            with Own() as own:
                self._engine.advance()
            if own.error is not None:  # whose answers it ended are told
                _log.error("a step failed", exc_info=own.error)
            with Own() as own:
                self._hand_out(time.perf_counter() - began)
            if own.error is not None:
                _log.error("handing out failed", exc_info=own.error)

    def _await_work(self) -> bool:
        """Learn or sleep until there is something to compute; False when it is over."""
        began, rests = time.perf_counter(), False
        more = True
        while True:
            with self._wake:
                self._wake.wait_for(
                    self._wanted,
                    timeout=0 if more else None,
                )
                learner = self._learner
                leaving, self._leaving = self._leaving, []
                arrived, self._arrived = self._arrived, []
            for answer in leaving:
                self._leave(answer)
            if self._stopping:
                return False
            if self._readers:
                if rests and learner is not None:
                    now = time.perf_counter()
                    learner.came(now - began, [now - each for each in arrived])
                return True
            rests = True
            more = learner is not None and learner.rest(self._wanted)

    def _wanted(self) -> bool:
        """Whether there is something to do but learn."""
        return bool(self._stopping or self._leaving or self._readers)

    def _leave(self, answer: ServedAnswer) -> None:
        with self._wake:
            handle, _ = self._readers.pop(answer, (None, None))
        if handle is not None:
            handle.cancel()
            self._watch.left(answer)

    def _hand_out(self, seconds: float) -> None:
        with self._wake:
            readers = list(self._readers.items())
        tokens = 0
        for answer, (handle, deliver) in readers:
            pieces: list[Piece] = []
            over = False
            with Own() as own:
                pieces, over = handle.ready()
            if not (pieces or over or own.error):
                continue
            tokens += sum(len(piece.token_ids) for piece in pieces)
            ended = over or own.error is not None
            self._watch.progressed(answer, pieces, ended=ended, error=own.error)
            if ended:
                with self._wake:
                    self._readers.pop(answer, None)
            deliver(pieces, over, own.error)
        self._watch.stepped(tokens, seconds)
