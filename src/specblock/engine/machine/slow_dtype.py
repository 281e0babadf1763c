"""Is this dtype any good on this processor?"""

from __future__ import annotations

import logging
import time

import torch
from torch.nn import functional as F

from specblock.target.model import Target

_ROWS, _TURNS = 16, 3  # rows, and times that it is timed
_SHAPE = (1024, 1024)  # of the weight that is timed
_HOPELESS = 4.0  # times as slow as the best: nobody would want that
_CHOICES = (torch.float32, torch.bfloat16)
_log = logging.getLogger("specblock")


def warn_of_slow_dtype(target: Target) -> None:
    """Say so where the processor is far slower in the target's dtype than in another."""
    slow = slower_dtype(target)
    if slow is not None:
        _log.warning("%s", slow)


def slower_dtype(target: Target) -> str | None:
    """A sentence where the processor is far slower in the target's dtype than in another.

    Some have no product in half precision and put it together from single conversions.
    """
    if target.device.type != "cpu" or target.dtype not in (torch.bfloat16, torch.float16):
        return None
    seconds = {dtype: product_seconds(dtype) for dtype in (target.dtype, *_CHOICES)}
    best = min(seconds, key=seconds.get)
    times = seconds[target.dtype] / seconds[best]
    if times < _HOPELESS:
        return None
    return (
        f"{_name(target.dtype)} products take {times:.0f} times as long as those of {_name(best)} "
        f"on this processor: use dtype {_name(best)}."
    )


@torch.inference_mode()
def product_seconds(dtype: torch.dtype) -> float:
    """Least seconds of a product of 16 rows with a matrix of 1024 by 1024."""
    x, weight = torch.ones(_ROWS, _SHAPE[1], dtype=dtype), torch.ones(_SHAPE, dtype=dtype)
    least = float("inf")
    for _ in range(_TURNS):
        started = time.perf_counter()
        F.linear(x, weight)
        least = min(least, time.perf_counter() - started)
    return least


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
