"""Work that makes room: given up between two operators when somebody waits, and begun anew later.

Autograd runs a CPU's backward pass in the thread that called it, so that one dispatch mode sees the
operators of forward and backward alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode

from specblock.steps import Steps

__all__ = ["Preemption", "Waiting"]

T = TypeVar("T")
Waiting = Callable[[], bool]  # whether somebody waits


class _GivenUpError(Exception):
    """Somebody waits."""


class _Watching(TorchDispatchMode):
    def __init__(self, waiting: Waiting):
        super().__init__()
        self._waiting = waiting

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self._waiting():
            raise _GivenUpError
        return func(*args, **(kwargs or {}))


class Preemption:
    """Runs pure work until somebody waits.

    Attributes:
        waiting: asked before every operator; None where nobody could be waiting.
    """

    def __init__(self) -> None:
        self.waiting: Waiting | None = None

    def whole(self, work: Callable[[], T]) -> Steps[T]:
        """What ``work`` returns, in as many tries as it takes; a step is a try that was given up.

        Args:
            work: changes nothing before its last operator, so that it may be begun anew.
        """
        while True:
            if self.waiting is None:
                return work()
            try:
                with _Watching(self.waiting):
                    return work()
            except _GivenUpError:
                yield
