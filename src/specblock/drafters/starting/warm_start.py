"""A drafter that drafts before its first gradient step.

What is described here is for SpecBlock, and for parallel heads as far as they share its parts (the
heads themselves start at zero, so at first every position proposes the same);
:mod:`specblock.drafters.eagle3.start` does what EAGLE-3 needs instead.

The target's last L layers turn the input of the first of them into the next token. If the
drafter's layers are copies of these, all its input layer has to do is guess that input at the
*next* position from what is known at this one. Where the layers are of a form that the drafter's
cannot copy (:mod:`specblock.drafters.starting.lending`), the drafter's add nothing at first, and
its input layer guesses the output of the target's last layer. That guess is linear regression:

1. ``condition_proj``: ridge regression of the guess on the normed features and token embedding;
   its feature part becomes the projection.
2. ``fuse``: the same regression on the projected, normed condition and the token, with the
   constant carried by the slot queries.
3. slots k >= 1: what a regression on the input k positions further on adds to that of slot 0,
   cut to ``slot_rank`` directions, the ones that move the guess most.

What is guessed is the top feature layer, which :func:`specblock.training.kinds.drafter_config`
chooses accordingly. The shift starts as (identity, 0); norm and head are the target's; the sink
entry is the first token's own top feature.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.eagle3.start import fit_eagle3
from specblock.drafters.objectives.sequence import Sequence
from specblock.drafters.parallel.network import ParallelModel
from specblock.drafters.specblock.network import SpecBlockModel
from specblock.drafters.starting.head import attach_target, final_norm
from specblock.drafters.starting.lending import loan_of
from specblock.drafters.starting.ridge import Ridge, unit
from specblock.steps import Steps, drained

__all__ = ["fit_input_layer", "fitting_input_layer", "start_layers", "warm_start"]

_log = logging.getLogger("specblock")

Layered = SpecBlockModel | ParallelModel  # drafters with SpecBlock's input layer and layers
Report = Callable[[str], None]


@torch.no_grad()
def start_layers(
    drafter: Layered | Eagle3Model, target: nn.Module, report: Report = _log.info
) -> bool:
    """Give a drafter layers, final norm, head rows and embeddings to start from.

    Returns:
        Whether its layers are copies of the target's last ones, or for EAGLE-3 what is behind the
        attention of its layer; otherwise they add nothing to their input. ``report`` is told which
        of the two, and why.
    """
    eagle = isinstance(drafter, Eagle3Model)
    layers = [drafter.midlayer] if eagle else list(drafter.layers)
    obstacle = _copy_layers(layers, drafter.config, target, behind_attention=eagle)
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
    if isinstance(drafter, SpecBlockModel):
        start_shift_as_identity(drafter)
    return not obstacle


def _copy_layers(
    layers: list[nn.Module], config, target: nn.Module, *, behind_attention: bool
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


def _rows(sequence: Sequence, drafter: Layered) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Normed features, normed token embeddings and, per slot, the guess's truth, at all pairs.

    The guess of slot k at pair i is the top feature at position i + 1 + k; pairs too close to the
    end have none and are left out, so every slot sees the same rows.
    """
    config = drafter.config
    size, slots = config.hidden_size, config.block_size
    count = sequence.tokens.numel() - slots
    features = sequence.features.float().unflatten(-1, (-1, size))
    inputs = unit(features[:count]).flatten(1)
    tokens = unit(drafter.input_layer.embed_tokens.weight[sequence.tokens[:count]])
    top = unit(features[:, -1])
    return inputs, tokens, [top[1 + k : 1 + k + count] for k in range(slots)]


def fit_input_layer(
    drafter: Layered, sequences: Iterable[Sequence], *, strength: float = 1e-4
) -> None:
    """Steps 1 to 3 of the module's text, in two passes over ``sequences``."""
    drained(fitting_input_layer(drafter, sequences, strength=strength))


@torch.no_grad()
def fitting_input_layer(
    drafter: Layered, sequences: Iterable[Sequence], *, strength: float = 1e-4
) -> Steps[None]:
    """:func:`fit_input_layer`, a sequence or a solution at a time."""
    config, layer = drafter.config, drafter.input_layer
    size, slots = config.hidden_size, config.block_size
    count = len(config.feature_layers)
    sequences = [s for s in sequences if s.tokens.numel() > slots]
    scale = _typical_scale(sequences, size)
    first = Ridge((count + 1) * size + 1, size)
    for sequence in sequences:
        inputs, tokens, truths = _rows(sequence, drafter)
        ones = torch.ones(len(inputs), 1)
        first.add(torch.cat((inputs, tokens, ones), dim=1), truths[0])
        yield
    layer.condition_proj.weight.copy_(first.solve(strength)[:, : count * size])
    second = Ridge(2 * size + 1, slots * size)
    for sequence in sequences:
        inputs, tokens, truths = _rows(sequence, drafter)
        condition = unit(inputs @ layer.condition_proj.weight.t())
        ones = torch.ones(len(inputs), 1)
        second.add(torch.cat((condition, tokens, ones), dim=1), torch.cat(truths, dim=1))
        yield
    solved = scale * second.solve(strength).unflatten(0, (slots, size))  # [K, H, 2H + 1]
    _install(drafter, solved, second.xx[:-1, :-1].float())
    if config.sink:
        first = [sequence.features[0, -size:].float() for sequence in sequences]
        drafter.sink.copy_(torch.stack(first).mean(0))


def _install(drafter: Layered, solved: Tensor, moments: Tensor) -> None:
    config, layer = drafter.config, drafter.input_layer
    width = 2 * config.hidden_size
    layer.fuse.weight[:, :width] = solved[0, :, :width]
    queries = layer.query_norm(layer.position_queries.weight)  # [K, H], nearly orthogonal
    constants = solved[:, :, width]  # [K, H]
    layer.fuse.weight[:, width:] = (torch.linalg.pinv(queries) @ constants).t()
    for slot in range(1, config.block_size if config.slot_rank else 1):
        extra = solved[slot, :, :width] - solved[0, :, :width]
        covariance = extra @ moments @ extra.t()
        basis = torch.linalg.eigh(covariance).eigenvectors[:, -config.slot_rank :]
        low, high = (slot - 1) * config.slot_rank, slot * config.slot_rank
        layer.slot_up[slot - 1] = basis
        layer.slot_down[low:high] = basis.t() @ extra


def _typical_scale(sequences: list[Sequence], size: int) -> float:
    """Median root-mean-square of the top feature: the residual stream's scale at that layer."""
    tops = torch.cat([s.features[1:, -size:].float().square().mean(-1).sqrt() for s in sequences])
    return tops.median().item()


@torch.no_grad()
def start_shift_as_identity(drafter: SpecBlockModel) -> None:
    size = drafter.config.hidden_size
    for shift in drafter.shift_proj:
        shift.weight.zero_()
        shift.weight[:, :size] = torch.eye(size)


@torch.no_grad()
def warm_start(
    drafter: nn.Module,
    target: nn.Module,
    sequences: list[Sequence],
    report: Report = _log.info,
) -> None:
    """Start a drafter of any kind in closed form from ``target`` and some thousand answer tokens.

    ``report`` is told whether its layers are the target's (:func:`start_layers`).
    """
    copied = start_layers(drafter, target, report)
    if isinstance(drafter, Eagle3Model):
        fit_eagle3(drafter, target, sequences, copied=copied)
        return
    fit_input_layer(drafter, sequences)
