"""Learning while a program waits for its user."""

from __future__ import annotations

import time
from threading import Event, Thread
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from specblock.adaptation.adapter import Adaptation
    from specblock.adaptation.remembering import Remembering

__all__ = ["Meanwhile"]


class Meanwhile:
    """A ``with`` block in which nothing is decoded: small steps of learning run beside it, which
    make room at its end. Without an ``adaptation`` nothing happens."""

    def __init__(self, adaptation: Adaptation | Remembering | None):
        self._adaptation, self._over = adaptation, Event()
        self._thread = Thread(target=self._learn, name="specblock-learn", daemon=True)

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        if self._adaptation is not None:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._adaptation is None:
            return
        over = time.perf_counter()
        self._over.set()
        self._thread.join()
        self._adaptation.came(over - self._began, [time.perf_counter() - over])

    def _learn(self) -> None:
        while not self._over.is_set() and self._adaptation.rest(self._over.is_set):
            pass
