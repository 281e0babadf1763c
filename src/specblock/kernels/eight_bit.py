"""Weights stored in 8 bits: half the size of bf16 on disk, ordinary weights once loaded.

A matrix becomes int8 with one fp32 scale for every 32 neighbours of a row, symmetric about zero, so
that the largest of them is 127; one scale a whole row costs 2 % of the accepted length
(docs/experiments.md, 35). What is small (norms, biases, the sink) stays as it is. Nothing is
computed in 8 bits because of it; for that see :mod:`specblock.drafters.light`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"  # how the name of an int8 matrix's scales ends
_SMALL = 4096  # elements
_GROUP = 32  # weights of one scale, where they divide a row


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every large floating-point matrix as ``NAME`` int8, ``NAME.scale`` fp32 ``[..., groups]``."""
    packed = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.numel() < _SMALL:
            packed[name] = tensor
            continue
        width = tensor.shape[-1]
        exact = tensor.float().unflatten(-1, (-1, width if width % _GROUP else _GROUP))
        # zeros have no largest weight; any scale will do
        scale = exact.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        packed[name] = (exact / scale).round().clamp(-127, 127).to(torch.int8).flatten(-2)
        packed[name + SCALE] = scale.squeeze(-1)
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
        if scale.shape[:-1] == tensor.shape[:-1] and tensor.shape[-1] % scale.shape[-1] == 0:
            groups = tensor.float().unflatten(-1, (scale.shape[-1], -1))
            found[name] = (groups * scale.float()[..., None]).flatten(-2)
            del found[name + SCALE]
    return found
