"""The boundary behind which learning may fail in any way without touching decoding."""

from __future__ import annotations

import logging
from types import TracebackType

from specblock.own import Own

_log = logging.getLogger("specblock")


class Contained(Own):
    """A ``with`` block in which an ordinary exception ends: logged, kept in ``error``, not raised.

    For the learner alone, whose result decoding does not need. Interrupts and exits pass.
    """

    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        kept = super().__exit__(kind, error, trace)
        if kept:
            _log.warning("%s failed, decoding goes on: %s: %s", self.what, kind.__name__, error)
            _log.debug("where it failed", exc_info=(kind, error, trace))
        return kept
