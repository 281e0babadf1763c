"""Sums over the processes that share a batch, where there are several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor
from torch import distributed as dist

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def worker_count() -> int:
    """How many processes share the batch at hand."""
    together = dist.is_available() and dist.is_initialized() and not _ALONE.get()
    return dist.get_world_size() if together else 1


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum over all processes, without gradient; ``values`` itself where there is one."""
    if worker_count() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process's sums are its own: for work that is not done in step."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)
