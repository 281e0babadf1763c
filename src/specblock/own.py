"""Work that is one request's own: what goes wrong in it is that request's alone."""

from __future__ import annotations

from types import TracebackType
from typing import Self

__all__ = ["Own"]


class Own:
    """A ``with`` block whose exception, of any kind, is kept in ``error`` and not raised.

    For what a request brings along, its logits processors above all, and for what drafts for it:
    nobody knows what they raise, and the other requests of a step must go on. Interrupts and exits
    pass.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> Self:
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
        return True
