"""Weights stored in 8 bits: half the size of bf16 on disk, ordinary weights once loaded.

A matrix becomes int8 with one fp32 scale a row (the last dimension), symmetric about zero, so that
a row's largest weight is 127. What is small (norms, biases, the sink) stays as it is. Nothing is
computed in 8 bits because of it; for that see :mod:`specblock.drafters.light`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"  # how the name of an int8 matrix's scales ends
_SMALL = 4096  # elements


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every large floating-point matrix as ``NAME`` int8 and ``NAME.scale`` fp32 ``[..., 1]``."""
    packed = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.numel() < _SMALL:
            packed[name] = tensor
            continue
        exact = tensor.float()
        # a row of zeros has no largest weight; any scale will do
        scale = exact.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        packed[name] = (exact / scale).round().clamp(-127, 127).to(torch.int8)
        packed[name + SCALE] = scale
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`pack`, in fp32; what was never packed is left as it is.

    So are a matrix without scales of its shape, and scales without their matrix: the check of
    names and types that follows a reading names them.
    """
    found = dict(tensors)
    for name, tensor in tensors.items():
        scale = tensors.get(name + SCALE)
        if tensor.dtype != torch.int8 or scale is None or not scale.is_floating_point():
            continue
        if scale.shape == (*tensor.shape[:-1], 1):
            found[name] = tensor.float() * scale.float()
            del found[name + SCALE]
    return found
