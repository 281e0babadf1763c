"""Many requests at once: who waits, who is being written, whose turn it is to compute.

There is no thread of the engine's own. Whoever reads an answer that has no new piece yet computes
the next step, for all requests; the others wait for it. So one request costs what it costs without
an engine, and any number of threads may read. A program that serves may instead let one thread call
:meth:`Engine.advance` while the engine is busy and take what :meth:`Handle.ready` has.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from threading import Lock, RLock
from typing import Generic, Self, TypeVar

from specblock.engine.sequence import Sequence, capacity_for, check_prompt
from specblock.engine.step import step
from specblock.engine.turns import turn_of
from specblock.errors import SpecBlockError
from specblock.own import Own
from specblock.target.model import Target

__all__ = ["Engine", "Handle", "Request"]

T = TypeVar("T")


class Request(ABC, Generic[T]):
    """What the engine is asked for, and what it has answered so far.

    Args:
        prompt: token ids.
        room: most new tokens.
        nodes: most draft nodes of a round.
    """

    def __init__(self, prompt: list[int], room: int, nodes: int = 0):
        self.prompt, self.room, self.nodes = prompt, room, nodes
        self.sequence: Sequence | None = None
        self.pieces: deque[T] = deque()
        self.error: Exception | None = None
        self.ended = False

    @abstractmethod
    def begin(self, target: Target) -> Sequence:
        """The sequence; asked for when the request is let in."""

    @abstractmethod
    def push(self, tokens: list[int]) -> tuple[T, bool]:
        """A piece of a round's new tokens, and whether it is the last."""

    @abstractmethod
    def end(self, complete: bool) -> T | None:
        """The text is over, at its end or before; called once. May return a last piece."""


class Handle(Generic[T]):
    """A request's pieces, as they come; an iterator, for threads and for asyncio.

    Made by :meth:`Engine.add`.
    """

    def __init__(self, engine: Engine, request: Request[T]):
        self._engine, self._request = engine, request

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while True:
            found, over = self._taken()
            if found:
                return found[0]
            if over:
                raise StopIteration
            self._engine.advance(self._request)

    def _taken(self) -> tuple[list[T], bool]:
        """The next piece, if it has come, or that there are no more; raises what ended the request
        once all are taken."""
        with self._engine.lock:
            if self._request.pieces:
                return [self._request.pieces.popleft()], False
            self._raise_error()
            return [], self._request.ended

    def ready(self) -> tuple[list[T], bool]:
        """The pieces that have come since, and whether they are the last; computes nothing.

        Raises what ended the request, once its pieces have been taken.
        """
        request = self._request
        with self._engine.lock:
            pieces, ended = list(request.pieces), request.ended
            request.pieces.clear()
            if not pieces:
                self._raise_error()
            return pieces, ended and request.error is None

    def _raise_error(self) -> None:
        if self._request.error is not None:
            error, self._request.error = self._request.error, None
            raise error

    async def __aiter__(self) -> AsyncIterator[T]:
        # pieces are taken here, not in the thread: a reader that is cut off loses none
        while True:
            found, over = self._taken()
            if found:
                yield found[0]
            elif over:
                return
            else:
                await asyncio.to_thread(self._engine.advance, self._request)

    def cancel(self) -> None:
        """Nothing more is wanted; what the request held is given back. A handle that is forgotten
        is cancelled."""
        self._engine.cancel(self._request)

    def __del__(self) -> None:
        if not self._request.ended:
            self.cancel()

    def until_closed(self, stack: ExitStack) -> Self:
        """The handle itself, cancelled when ``stack`` is closed."""
        stack.callback(self.cancel)
        return self


class Engine:
    """Writes many texts with one target.

    Args:
        target: what writes them.
        most_running: texts that are written at the same time; others wait.
        memory: bytes of all their caches together, and of those of ended texts; None leaves the
            target's limit, an eighth of what was free (:mod:`specblock.target.memory`).
    """

    def __init__(self, target: Target, most_running: int = 16, memory: int | None = None):
        self.target, self.most_running = target, most_running
        if memory is not None:
            target.texts.most_bytes = memory
        self.steps = 0  # so many were computed
        self.lock = RLock()  # of what follows; held for moments
        self._left: deque[Request] = deque()  # dropped, and not dismissed yet
        self._stepping = Lock()  # held by the thread that computes
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    def add(self, request: Request[T]) -> Handle[T]:
        """Take a request; it enters when there is room, first come first served.

        Raises:
            ContextError: the prompt is empty or leaves no room for a token.
            SpecBlockError: it needs more room than there will ever be.
        """
        check_prompt(request.prompt, self.target)
        self._check_size(request)
        with self.lock:
            self._waiting.append(request)
        return Handle(self, request)

    def _positions(self, request: Request) -> int:
        """Of the target's cache that it may need."""
        return capacity_for(self.target, len(request.prompt), request.room, request.nodes)

    def _check_size(self, request: Request) -> None:
        most, wanted = self.target.texts.most_positions, self._positions(request)
        if most is not None and wanted > most:
            raise SpecBlockError(
                f"The request needs {wanted} positions and the engine's memory holds "
                f"{most}: ask for fewer new tokens, or allow more memory."
            )

    @property
    def busy(self) -> bool:
        """Whether anything waits or is being written."""
        return any(self.counts)

    @property
    def counts(self) -> tuple[int, int]:
        """How many requests are being written, and how many wait."""
        with self.lock:
            return len(self._running), len(self._waiting)

    def cancel(self, request: Request) -> None:
        """Drop a request, at the latest after the step that is being computed; an ended one stays
        as it is. Never waits: the garbage collector may call it in the middle of anything."""
        self._left.append(request)
        self._dismiss()

    def _dismiss(self) -> None:
        """Give back what dropped requests held; left to the thread that computes, if one does."""
        while self._left and self._stepping.acquire(blocking=False):
            try:
                while self._left:
                    self._drop(self._left.popleft())
            finally:
                self._stepping.release()

    def _drop(self, request: Request) -> None:
        with self.lock:
            request.pieces.clear()
            if request in self._waiting:
                self._waiting.remove(request)
                request.ended = True
        if not request.ended:
            self._end(request, complete=False)

    def advance(self, request: Request | None = None) -> None:
        """Compute a step, unless another thread just did one that brought ``request`` further."""
        try:
            with self._stepping:
                with self.lock:
                    served = request and (request.pieces or request.ended or request.error)
                if not served:
                    self.step()
        finally:
            self._dismiss()

    def step(self) -> None:
        """One round of every text; called by one thread at a time."""
        with turn_of(self.target.model):
            self._admit()
            running = list(self._running)
            if not running:
                return
            self.steps += 1
            try:
                found = step(self.target, [request.sequence for request in running])
                for request, tokens in zip(running, found, strict=True):
                    self._hand_out(request, tokens)
            except BaseException as error:
                # it was cut off: no text's cache is to be trusted, nor is its text whole
                for request in list(self._running):
                    self._end(request, complete=False, error=_of_others(error))
                raise

    def _admit(self) -> None:
        while True:
            with self.lock:
                if not self._waiting or len(self._running) >= self.most_running:
                    return
                if self._running and not self.target.texts.fits(self._positions(self._waiting[0])):
                    return
                request = self._waiting.popleft()
            try:
                with Own() as own:
                    self._check_size(request)  # nothing may have been known when it was taken
                    request.sequence = request.begin(self.target)
            except BaseException as error:
                request.error, request.ended = _of_others(error), True
                raise
            with self.lock:
                if own.error is None:
                    self._running.append(request)
                else:
                    request.error, request.ended = own.error, True

    def _hand_out(self, request: Request, tokens: list[int]) -> None:
        done = request.sequence.finished
        with Own() as own:
            if tokens:
                piece, last = request.push(tokens)
                done = done or last
                with self.lock:
                    request.pieces.append(piece)
        error = request.sequence.error or own.error
        if done or error is not None:
            self._end(request, complete=error is None, error=error)

    def _end(self, request: Request, *, complete: bool, error: BaseException | None = None) -> None:
        last = None
        with Own() as own:
            request.sequence.close(sound=error is None)
            last = request.end(complete)
        with self.lock:
            self._running.remove(request)
            if last is not None:
                request.pieces.append(last)
            request.error, request.ended = error or own.error, True


def _of_others(error: BaseException) -> Exception:
    """What the other requests are told of an error that stopped a step."""
    if isinstance(error, Exception):
        return error
    return SpecBlockError("The step was interrupted (Ctrl-C in another thread): ask again.")
