"""Whether a model lets our attention see what its cache keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from specblock.errors import ModelError
from specblock.kernels import invariant
from specblock.target.architecture.tap import FeatureTap
from specblock.target.cache import PathCache

if TYPE_CHECKING:
    from specblock.target.model import Target

__all__ = ["hands_on_its_cache", "is_exact"]


@torch.inference_mode()
def hands_on_its_cache(target: Target, tap: FeatureTap, cache_name: str) -> bool:
    """Whether every layer hands keys and values to its attention as the cache returned them; a
    forward of two tokens tells."""
    seen: list[bool] = []
    usual, target.loan.attention = target.loan.attention, invariant.register_trial(seen)
    ids = torch.zeros(1, 2, dtype=torch.int64, device=target.device)
    cache = PathCache(target.config.num_hidden_layers, 2)
    try:
        with target.positions.computed_as_if_last(ids[0] + 1), target.loan:
            target.model(input_ids=ids, **{cache_name: cache}, use_cache=True)
    finally:
        target.loan.attention = usual
    tap.take()
    return bool(seen) and all(seen)


def is_exact(target: Target, asked: bool | None) -> bool:
    """Whether verification is exact: where it is ``asked`` for, and of itself in half precision.

    Raises :class:`ModelError` where it is asked for and cannot be had.
    """
    half = target.dtype in (torch.bfloat16, torch.float16)
    wanted = half if asked is None else asked
    if not wanted or (target.device.type == "cpu" and target.hands_on_its_cache):
        return wanted
    if asked:
        raise ModelError(
            "Verification can be made exact on the CPU alone, for models that run with sdpa "
            "attention and keep keys and values as it reads them; leave exact out."
        )
    return False
