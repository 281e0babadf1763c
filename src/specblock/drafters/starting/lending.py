"""What a target lends to a drafter that starts: layers, embeddings, rows of the head."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from specblock.errors import CheckpointError
from specblock.target.architecture.structure import decoder_layers

__all__ = ["attach_target", "attention_form", "lent"]


def attention_form(target: nn.Module) -> dict[str, bool]:
    """The settings of a drafter whose attention is to have the form of the target's last layer."""
    names = decoder_layers(target)[-1].state_dict()
    return {
        "qkv_bias": "self_attn.q_proj.bias" in names,
        "qk_norm": "self_attn.q_norm.weight" in names,
    }


def lent(state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The weights in fp32 if they are exactly those of these names."""
    odd = sorted(set(state) ^ set(names))
    if odd:
        raise CheckpointError(
            f"The target's layers cannot be copied into the drafter (they differ in "
            f"{', '.join(odd)})."
        )
    return {name: value.float() for name, value in state.items()}


@torch.no_grad()
def attach_target(drafter: nn.Module, target: nn.Module, *, head: bool) -> None:
    """Fill the embeddings from the target, and with ``head`` the rows of the head too."""
    for name, parameter in drafter.named_parameters():
        if name.endswith("embed_tokens.weight"):
            parameter.copy_(target.get_input_embeddings().weight)
    if head:
        rows = drafter.t2d.to(target.device)
        drafter.lm_head.weight.copy_(target.get_output_embeddings().weight[rows])
