"""The answers to one HTTP request, read in asyncio while the worker writes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

from specblock.serving.api.errors import ApiError
from specblock.serving.decoding.pieces import Piece, ServedAnswer
from specblock.serving.decoding.worker import Worker

__all__ = ["Reading"]


class Reading:
    """Pieces of several answers in the order in which they come.

    Args:
        worker: that computes them. answers: one or more.
        seconds: after which they are broken off.

    Must be closed; made and used in one event loop.
    """

    def __init__(self, worker: Worker, answers: list[ServedAnswer], seconds: float):
        self.answers, self._worker = answers, worker
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[ServedAnswer, Piece] | Exception] = asyncio.Queue()
        self._open, self._watcher = set(answers), None
        # never more pieces than tokens: what waits here is bounded by the limit of an answer
        worker.ask(answers, [partial(self._from_worker, answer) for answer in answers])
        late = ApiError(
            504,
            f"The answer took longer than {seconds:g} seconds.",
            "timeout_error",
            code="timeout",
        )
        self._timer = self._loop.call_later(seconds, self.fail, late)

    def watched_by(self, task: asyncio.Task[None]) -> None:
        """A task that looks whether the client is there, ended with the reading."""
        self._watcher = task

    def _from_worker(
        self, answer: ServedAnswer, pieces: list[Piece], over: bool, error: Exception | None
    ) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has been stopped
            self._loop.call_soon_threadsafe(self._take, answer, pieces, over, error)

    def _take(
        self, answer: ServedAnswer, pieces: list[Piece], over: bool, error: Exception | None
    ) -> None:
        for piece in pieces:
            self._queue.put_nowait((answer, piece))
        if over or error is not None:
            self._open.discard(answer)
        if error is not None:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End all answers; who reads gets ``error`` after what came before it."""
        self._queue.put_nowait(error)
        self._drop()

    def close(self) -> None:
        """Nobody reads any more."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # which knows this reading: no circle is left
        self._drop()

    def _drop(self) -> None:
        while self._open:
            self._worker.drop(self._open.pop())

    async def pieces(self) -> AsyncIterator[tuple[ServedAnswer, Piece]]:
        """To the last piece of the last answer.

        Raises what ended an answer before its end.
        """
        unfinished = len(self.answers)
        while unfinished:
            found = await self._queue.get()
            if isinstance(found, Exception):
                raise found
            unfinished -= found[1].finish_reason is not None
            yield found
