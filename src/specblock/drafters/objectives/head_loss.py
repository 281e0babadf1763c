"""The output head and its soft cross-entropy in one step, a few rows at a time.

The logits of a training step (rows x draft vocabulary, in fp32, and as much again for their
gradient) are the largest tensors there are, and on a CPU reading and writing them costs more than
the products around them. Here a chunk of rows goes through the head, leaves its loss, its best
candidates and the gradient with respect to its hidden states, and is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specblock.drafters.objectives.losses import Targets

CHUNK_ROWS = 256  # fp32 logits of a chunk stay in the cache of a CPU
PROFILE_LABEL = "specblock::head_loss"  # what a profile calls it


@dataclass(frozen=True)
class HeadOutput:
    """What the loss needs of R rows of logits.

    ``terms`` fp32 [R], the soft cross-entropies ``-sum_v P(v) log q(v)``, differentiable;
    ``ranks`` int64 [R], the rank of the target's best token, 1 = first, at most k + 1;
    ``top`` fp32 [R, k], the best logits, falling.
    """

    terms: Tensor
    ranks: Tensor
    top: Tensor


def head_loss(
    normed: Tensor, weight: Tensor, targets: Targets, *, top: int, chunk_rows: int = CHUNK_ROWS
) -> HeadOutput:
    """Loss and best candidates of ``normed [R, H]`` under the head ``weight [V_d, H]``.

    Under autocast the products run in its dtype; sums and exponentials are fp32 always.
    """
    device = normed.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else normed.dtype
    with torch.profiler.record_function(PROFILE_LABEL):
        terms, ranks, best = _HeadLoss.apply(
            normed.to(dtype), weight.to(dtype), targets.ids, targets.probabilities, top, chunk_rows
        )
    return HeadOutput(terms, ranks, best)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, normed, weight, ids, probabilities, top, chunk_rows):
        rows = len(normed)
        terms = normed.new_empty(rows, dtype=torch.float32)
        ranks = ids.new_empty(rows)
        best = normed.new_empty(rows, min(top, len(weight)), dtype=torch.float32)
        wants_hidden, ctx.wants_weight = ctx.needs_input_grad[:2]
        slope = torch.empty_like(normed) if wants_hidden else None
        for start in range(0, rows, chunk_rows):
            part = slice(start, start + chunk_rows)
            logits = (normed[part] @ weight.t()).float()
            log_sum = logits.logsumexp(-1, keepdim=True)
            wanted, mass = probabilities[part], probabilities[part].sum(-1, keepdim=True)
            chosen = logits.gather(-1, ids[part])
            terms[part] = (mass * log_sum).squeeze(-1) - (wanted * chosen).sum(-1)
            best[part] = logits.topk(best.shape[-1], dim=-1).values
            ranks[part] = (best[part] > chosen[:, :1]).sum(-1) + 1
            if wants_hidden:
                residual = _residual(logits, log_sum, ids[part], wanted, mass)
                slope[part] = residual.to(weight.dtype) @ weight
        if ctx.wants_weight:
            ctx.save_for_backward(slope, normed, weight, ids, probabilities)
            ctx.chunk_rows = chunk_rows
        else:
            ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(ranks, best)
        return terms, ranks, best

    @staticmethod
    def backward(ctx, upstream, _ranks, _best):
        slope, *saved = ctx.saved_tensors
        hidden_grad = None if slope is None else slope * upstream[:, None].to(slope.dtype)
        weight_grad = None
        if ctx.wants_weight:
            normed, weight, ids, probabilities = saved
            weight_grad = torch.zeros_like(weight, dtype=torch.float32)
            for start in range(0, len(normed), ctx.chunk_rows):
                part = slice(start, start + ctx.chunk_rows)
                logits = (normed[part] @ weight.t()).float()
                wanted = probabilities[part] * upstream[part, None]
                mass = wanted.sum(-1, keepdim=True)
                log_sum = logits.logsumexp(-1, keepdim=True)
                residual = _residual(logits, log_sum, ids[part], wanted, mass)
                weight_grad += residual.to(normed.dtype).t() @ normed[part]
            weight_grad = weight_grad.to(weight.dtype)
        return hidden_grad, weight_grad, None, None, None, None


def _residual(logits: Tensor, log_sum: Tensor, ids: Tensor, wanted: Tensor, mass: Tensor) -> Tensor:
    """Gradient of the cross-entropy with respect to the logits; overwrites ``logits``."""
    gradient = logits.sub_(log_sum).exp_().mul_(mass)
    return gradient.scatter_add_(-1, ids, -wanted)
