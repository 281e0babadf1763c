"""The boundary behind which learning may fail in any way without touching decoding."""

from __future__ import annotations

import logging
from types import TracebackType

_log = logging.getLogger("specblock")


class Contained:
    """A ``with`` block in which an ordinary exception ends: logged, kept in ``error``, not raised.

    For the learner alone, whose result decoding does not need. Interrupts and exits pass.
    """

    def __init__(self, what: str):
        self.what, self.error = what, None

    def __enter__(self) -> Contained:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.error = error
        _log.warning("%s failed, decoding goes on: %s: %s", self.what, kind.__name__, error)
        _log.debug("where it failed", exc_info=(kind, error, trace))
        return True
