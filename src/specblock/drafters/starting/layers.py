"""A drafter's layers, norm, head and embeddings before its first gradient step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

from specblock.drafters.starting.head import attach_target, final_norm
from specblock.drafters.starting.lending import loan_of

__all__ = ["Report", "start_from", "tell"]

Report = Callable[[str], None]
tell: Report = logging.getLogger("specblock").info


@torch.no_grad()
def start_from(
    target: nn.Module,
    drafter: nn.Module,
    layers: Sequence[nn.Module],
    report: Report,
    *,
    behind_attention: bool = False,
) -> bool:
    """Give a drafter layers, final norm, head rows and embeddings to start from.

    Args:
        layers: the drafter's.
        behind_attention: only what is behind their attention is to be copied.

    Returns:
        Whether they are copies of the target's last ones; otherwise they add nothing to their
        input. ``report`` is told which of the two, and why.
    """
    obstacle = _copy_layers(layers, drafter.config, target, behind_attention=behind_attention)
    if obstacle:
        for layer in layers:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
        report(f"the target's last layers cannot be copied ({obstacle}): the drafter's start as "
               "the identity")  # fmt: skip
    else:
        report(f"the drafter starts with copies of the target's last {len(layers)} layers")
    attach_target(drafter, target, head=True)
    drafter.norm.weight.copy_(final_norm(target))
    return not obstacle


def _copy_layers(
    layers: Sequence[nn.Module], config, target: nn.Module, *, behind_attention: bool
) -> str:
    """Copy the target's last layers, or say why not, before anything is changed."""
    loan = loan_of(target, len(layers))
    if not loan.layers:
        return loan.obstacle
    if config.feature_layers[-1] == config.target_layers - 1:
        return "the drafter reads what they put out"
    lent = [dict(state) for state in loan.layers]
    if behind_attention:  # whose norm is of another input
        lent = [{k: v for k, v in state.items() if k.startswith(("post_", "mlp."))}
                for state in lent]  # fmt: skip
    for layer, state in zip(layers, lent, strict=True):
        own = layer.state_dict()
        odd = [
            name for name, value in state.items() if own.get(name, value[:0]).shape != value.shape
        ]
        if odd:
            return f"the drafter's are of another shape in {', '.join(odd)}"
    for layer, state in zip(layers, lent, strict=True):
        layer.load_state_dict(state, strict=not behind_attention)
    return ""
