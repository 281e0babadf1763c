"""What the routes share: the model, the thread that computes, figures, and how it all stops."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.requests import Request

from specblock.engine.speculator import Speculator
from specblock.serving.api.errors import ApiError
from specblock.serving.api.requests import GenerationRequest
from specblock.serving.decoding.prepare import Preparation, check_count
from specblock.serving.decoding.reading import Reading
from specblock.serving.decoding.worker import Worker
from specblock.serving.settings import ServingConfig
from specblock.serving.watching.metrics import Metrics
from specblock.serving.watching.watch import Watch

__all__ = ["Service"]

_log = logging.getLogger("specblock")
_LAST_STEP_SECONDS = 3.0  # what a step under way is waited for when the server stops


class Service:
    """One model, served.

    Args:
        speculator: used by nobody else meanwhile.
        model: its name to clients.
    """

    def __init__(self, speculator: Speculator, model: str, config: ServingConfig):
        self.speculator, self.model, self.config = speculator, model, config
        self.created = int(time.time())
        speculator.engine.most_running = config.max_running
        adaptation = speculator.adaptation
        self.watch = Watch(
            Metrics(speculator.engine), None if adaptation is None else adaptation.status
        )
        self.stopping = False
        self._worker = Worker(speculator.engine, self.watch, adaptation)
        self._preparation = Preparation(speculator, config)
        # one thread: tokenizers and grammars are not made for several, and clients take turns
        self._preparing = ThreadPoolExecutor(1, "specblock-prepare")
        self._readings: set[Reading] = set()

    def start(self) -> None:
        """Begin to compute what is asked."""
        self._worker.start()

    def stop(self) -> bool:
        """End what is left; whether nobody uses the speculator any more."""
        self._preparing.shutdown(wait=False, cancel_futures=True)
        return self._worker.stop(_LAST_STEP_SECONDS)

    def begin_stop(self) -> None:
        """Take nothing new; what is under way is given the time of grace."""
        if not self.stopping:
            self.stopping = True
            self._worker.stop_learning()  # an update under way would not end in time
            asyncio.get_running_loop().call_later(self.config.grace_seconds, self._break_off)

    def _break_off(self) -> None:
        for reading in list(self._readings):
            reading.fail(_stopping())

    async def ask(self, asked: GenerationRequest, request: Request) -> Reading:
        """Answers under way, which end when the client goes; :meth:`close` them.

        Raises:
            ApiError: it is refused. SpecBlockError: it does not fit the model.
        """
        if asked.model not in (None, self.model):
            raise no_such_model(asked.model)
        check_count(asked.count, self.config.max_n)
        self._check_room(asked.count)
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._preparing, self._preparation.answers, asked)
        self._check_room(len(answers))  # others may have come meanwhile
        reading = Reading(self._worker, answers, self.config.max_seconds)
        self._readings.add(reading)
        reading.watched_by(asyncio.ensure_future(_gone(request, reading)))
        return reading

    def close(self, reading: Reading) -> None:
        """Nobody reads it any more."""
        self._readings.discard(reading)
        reading.close()

    def _check_room(self, count: int) -> None:
        if self.stopping:
            raise _stopping()
        running, waiting = self.speculator.engine.counts
        free = self.config.max_running - running
        if waiting + count > self.config.max_waiting + max(0, free):
            raise ApiError.busy(
                429, "Too many requests are waiting: try again later.", "queue_full"
            )

    def spell(self, token: int) -> tuple[str, list[int] | None]:
        """A token's text, and its bytes where they are known."""
        known = self._preparation.grammars.tokenizer
        spelled = None if known is None else list(known.decode_bytes([token]))
        return self.speculator.tokenizer.decode([token]), spelled

    @property
    def max_nodes(self) -> int:
        """Most draft nodes of a round."""
        return self.speculator.seats.nodes

    def model_object(self) -> dict[str, Any]:
        """As ``/v1/models`` lists it."""
        return {
            "id": self.model,
            "object": "model",
            "created": self.created,
            "owned_by": "specblock",
            "max_model_len": self.speculator.target.context_length,
        }


async def _gone(request: Request, reading: Reading) -> None:
    """Break off what a client does not wait for any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    reading.fail(ApiError(499, "The client has gone."))


def _stopping() -> ApiError:
    return ApiError.busy(503, "The server is stopping.", "server_stopping")


def no_such_model(name: str) -> ApiError:
    """Another model was asked for."""
    words = f"There is no model {name[:100]!r} here; /v1/models says which there is."
    return ApiError(404, words, param="model", code="model_not_found")


def served_name(model: str) -> str:
    """A model's name to clients: that of a folder or file without where it lies."""
    return Path(model).name if Path(model).exists() else model
