"""What a drafter has from its target whatever the target's layers are: embeddings, norm, head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specblock.drafters.starting.lending import short_text
from specblock.drafters.starting.ridge import unit
from specblock.target.architecture.structure import decoder_layers, text_config
from specblock.target.architecture.tap import FeatureTap

__all__ = ["attach_target", "final_norm"]

_SAME = 0.02  # relative; a norm found from bfloat16 activations is within 0.01 of the true one


@torch.no_grad()
def attach_target(drafter: nn.Module, target: nn.Module, *, head: bool) -> None:
    """Fill the embeddings from the target, and with ``head`` the rows of the head too."""
    for name, parameter in drafter.named_parameters():
        if name.endswith("embed_tokens.weight"):
            parameter.copy_(target.get_input_embeddings().weight)
    if head:
        rows = drafter.t2d.to(target.device)
        drafter.lm_head.weight.copy_(target.get_output_embeddings().weight[rows])


@torch.no_grad()
def final_norm(target: nn.Module) -> Tensor:
    """The weights ``[H]`` of the RMS norm that is nearest to what the target does between its last
    layer and its head; fp32 on the CPU. One short forward of the target.

    For an RMS norm these are its weights, or one more than these (Gemma). For another norm they
    are the least squares. A factor on the logits (Granite, Cohere) goes into them; the bias of a
    head is left out.
    """
    head, read = target.get_output_embeddings(), []
    handle = head.register_forward_hook(
        lambda _module, inputs, output: read.append((inputs[0], output))
    )
    tap = FeatureTap(target, (len(decoder_layers(target)) - 1,))
    try:
        with tap:
            logits = target(input_ids=short_text(target), use_cache=False).logits
    finally:
        handle.remove()
    # the first token's state is unlike any other's
    states, (inputs, product) = unit(tap.take()[0, 1:].cpu()), read[-1]
    inputs = inputs[0, 1:].float().cpu()
    found = (states * inputs).sum(0) / states.square().sum(0).clamp_min(1e-12)
    product, logits = product.float(), logits.float()
    factor = ((product * logits).sum() / product.square().sum()).item()
    return factor * _exactly(found, target)


def _exactly(found: Tensor, target: nn.Module) -> Tensor:
    """A vector of the decoder's own that ``found`` is but for rounding, else ``found``."""
    size = text_config(target).hidden_size
    for name, parameter in target.get_decoder().named_parameters():
        if name.count(".") > 1 or parameter.shape != (size,):
            continue
        own = parameter.float().cpu()
        for candidate in (own, 1 + own):
            if (found - candidate).norm() <= _SAME * candidate.norm():
                return candidate
    return found
