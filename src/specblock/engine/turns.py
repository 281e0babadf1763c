"""One text at a time: a model's caches hold one, so a second one waits for its turn.

Turns belong to the model that decodes: whoever uses it (a speculator, the doorway, a benchmark)
queues at the same place. Another thread waits. The thread whose own text is not finished would wait
for itself, so it is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from weakref import WeakKeyDictionary

from torch import nn

from specblock.errors import BusyError

__all__ = ["turn_of"]


class _Turns:
    def __init__(self) -> None:
        self.lock, self.thread = Lock(), None


_turns: WeakKeyDictionary[nn.Module, _Turns] = WeakKeyDictionary()
_making = Lock()


@contextmanager
def turn_of(model: nn.Module) -> Iterator[None]:
    """Hold the model for one text; waits while another thread's text is being written.

    Raises:
        BusyError: this very thread has begun a text with the model and not ended it.
    """
    with _making:
        turns = _turns.setdefault(model, _Turns())
    if turns.thread == get_ident():
        raise BusyError(
            "Another answer of this model is not finished in this thread: read it to its end, or "
            "close its iterator, before the next one begins."
        )
    with turns.lock:
        turns.thread = get_ident()
        try:
            yield
        finally:
            turns.thread = None
