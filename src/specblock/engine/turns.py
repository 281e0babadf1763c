"""One forward at a time: whoever computes with a model holds it meanwhile.

Turns belong to the model: speculators, the doorway and benchmarks queue at the same place.
"""

from __future__ import annotations

from threading import RLock
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["turn_of"]

_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_making = RLock()


def turn_of(model: nn.Module) -> RLock:
    """The model's lock, a context manager; other threads wait, the same one may enter again."""
    with _making:
        return _locks.setdefault(model, RLock())
