"""Faults of the tested versions that make speculation wrong, each mended where it is found."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["expanded", "mend", "spreads_per_request_values", "unless_empty"]

_log = logging.getLogger("specblock")


def mend() -> None:
    """Look for the faults and replace what has them; nothing where all is well."""
    from vllm.v1.sample import rejection_sampler

    if not spreads_per_request_values(rejection_sampler.expand_batch_to_tokens):
        rejection_sampler.expand_batch_to_tokens = expanded
        _log.info("vLLM's expand_batch_to_tokens returns memory that nobody wrote; replaced")
    constrain = rejection_sampler.apply_sampling_constraints
    if not hasattr(constrain, "__wrapped__"):
        rejection_sampler.apply_sampling_constraints = unless_empty(constrain)


def spreads_per_request_values(function) -> bool:
    """Whether ``expand_batch_to_tokens`` gives every row its request's value.

    On the CPU version 0.32.0 returns what happened to be in memory: temperatures of sampled
    requests are then arbitrary, and sampling with speculation follows another distribution.
    """
    values, ends = torch.tensor([0.25, 0.0, 3.5]), torch.tensor([2, 3, 6], dtype=torch.int32)
    wanted = torch.tensor([0.25, 0.25, 1.0, 3.5, 3.5, 3.5])
    for _ in range(3):
        torch.full((6,), torch.nan)  # what the allocator hands out next
        found = function(values, ends, 6, replace_from=0, replace_to=1)
        if not torch.equal(found.float(), wanted):
            return False
    return True


def unless_empty(constrain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``apply_sampling_constraints`` that leaves logits of no rows alone.

    Where no text of a step has a draft, version 0.32.0 takes the maximum of no ``top_k`` at all,
    which raises.
    """

    @functools.wraps(constrain)
    def constrained(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return constrain(logits, *args, **kwargs) if len(logits) else logits

    return constrained


def expanded(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """``x [batch]`` repeated to ``[num_tokens]``, request r as often as its share of the running
    sums ``cu_num_tokens``; ``replace_from`` becomes ``replace_to``."""
    counts = cu_num_tokens.long().diff(prepend=cu_num_tokens.new_zeros(1).long())
    chosen = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return chosen.repeat_interleave(counts, output_size=num_tokens)
