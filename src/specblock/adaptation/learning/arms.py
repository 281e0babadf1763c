"""What an update may change: the heads, the last layer too, or the whole drafter.

Every arm trains fp32 copies of the live weights, the *master*, in which the final norm carries a
low-rank correction of the output head: with n the normed state, C = I + U D and head W the logits
are W C n. D is [r, H] and U [H, r], so the correction costs 2 r H weights instead of V_d H and its
gradient needs no product with the vocabulary beyond the loss's own. The head itself is never
trained: it may be the target's rows. What decodes, and what is exported, is an ordinary drafter:
C is folded into the head and into the rank head's reading of n, exactly.

Embeddings are the target's and stay. A drafter whose head is the target's rows can have others: its
draft vocabulary then counts among its weights, under the name of its buffer ``t2d``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from specblock.drafters.layers import RMSNorm
from specblock.drafters.specblock.network import SpecBlockModel, vocabulary_map
from specblock.kernels.linear import routed
from specblock.kernels.route_table import RouteTable

HEADS, LAST_LAYER, FULL = "heads", "last-layer", "full"
ARMS = (HEADS, LAST_LAYER, FULL)
FIT = "fit"  # of a drafter that starts from nothing
# Seconds of an update relative to one of the heads alone, until they are measured: a pass forward,
# and how much of a pass back.
COST_SHARES = {FIT: 1.5, HEADS: 1.0, LAST_LAYER: 1.4, FULL: 2.0}
CORRECTION = ("norm.down", "norm.up")
VOCABULARY = "t2d"
_HEAD, _RANK = "lm_head.weight", "rank_head.0.weight"


class CorrectedNorm(RMSNorm):
    """A final norm followed by a low-rank correction: n + U D n; the identity at first."""

    def __init__(self, norm: RMSNorm, rank: int, seed: int):
        size = norm.weight.numel()
        super().__init__(size, norm.eps)
        self.weight = norm.weight
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(rank, size, generator=generator) / size**0.5
        self.down = nn.Parameter(down.to(norm.weight.device))
        self.up = nn.Parameter(torch.zeros(size, rank, device=norm.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        normed = super().forward(x)
        return normed + (normed @ self.down.t()) @ self.up.t()


def master_of(live: SpecBlockModel, rank: int, seed: int) -> SpecBlockModel:
    """A trainable fp32 copy of ``live`` with a correction of ``rank``; it shares the embeddings."""
    embeddings = live.input_layer.embed_tokens.weight
    for linear in routed(live):
        linear.refresh()  # packed copies need not be copied again; they are made anew on use
    master = copy.deepcopy(live, {id(embeddings): embeddings})
    for linear in routed(master):
        linear.use(RouteTable())  # its weights change at every step: no packed copies
    for parameter in master.parameters():
        if parameter is not embeddings:
            parameter.data = parameter.data.float()
    master.norm = CorrectedNorm(master.norm, rank, seed)
    return master


def trainable(master: SpecBlockModel, arm: str) -> dict[str, nn.Parameter]:
    """The parameters that ``arm`` trains, by name."""
    last = len(master.layers) - 1
    prefixes = ["norm.", "rank_head."]
    if arm == LAST_LAYER:
        prefixes += [f"layers.{last}.", f"shift_proj.{last - 1}."]
    elif arm == FULL:
        prefixes = [""]
    elif arm != HEADS:
        raise ValueError(f"there is no arm {arm!r}; there are {', '.join(ARMS)}")
    frozen = {id(master.input_layer.embed_tokens.weight), id(master.lm_head.weight)}
    return {
        name: parameter
        for name, parameter in master.named_parameters()
        if name.startswith(tuple(prefixes)) and id(parameter) not in frozen
    }


def weights_of(master: SpecBlockModel) -> dict[str, Tensor]:
    """A copy of everything that any arm trains."""
    return {name: p.detach().clone() for name, p in trainable(master, FULL).items()}


@torch.no_grad()
def put_weights(master: SpecBlockModel, weights: Mapping[str, Tensor]) -> None:
    """Set what :func:`weights_of` gave; part of it leaves the rest alone."""
    parameters = dict(master.named_parameters())
    for name, tensor in weights.items():
        parameters[name].copy_(tensor)


@torch.no_grad()
def folded(head: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an ordinary drafter, by its own names.

    Args:
        head: [V_d, H], the uncorrected output head. weights: of :func:`weights_of`.
    """
    result = {name: tensor for name, tensor in weights.items() if name not in CORRECTION}
    down, up = (weights[name] for name in CORRECTION)
    size = head.shape[1]
    rank = weights[_RANK]
    seen = rank[:, :size]
    result[_RANK] = torch.cat((seen + (seen @ up) @ down, rank[:, size:]), dim=1)
    result[_HEAD] = head + (head.to(up.dtype) @ up) @ down if up.any() else head
    return result


@torch.no_grad()
def swap(live: SpecBlockModel, weights: Mapping[str, Tensor]) -> None:
    """Put ``weights`` (of :func:`folded`) into the drafter that decodes; between two rounds only.

    With a draft vocabulary comes the head that belongs to it. Refused as a whole, with a
    ValueError, if a name or shape is wrong or a value is not finite.
    Packed copies of the changed matrices are dropped and made anew by the next product, on the
    same routes: shapes and costs stay what was measured.
    """
    parameters = dict(live.named_parameters()) | {VOCABULARY: live.t2d, "d2t": live.d2t}
    if VOCABULARY in weights:
        weights = {**weights, "d2t": _offsets(weights[VOCABULARY])}
    for name, tensor in weights.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise ValueError(f"the drafter has no weight {name} of shape {list(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"weight {name} is not finite")
    changed = set()
    for name, tensor in weights.items():
        parameter = parameters[name]
        tensor = tensor.to(parameter)
        if not torch.equal(parameter, tensor):
            parameter.copy_(tensor)
            changed.add(id(parameter))
    for linear in routed(live):
        if id(linear.weight) in changed:
            linear.refresh()


def _offsets(t2d: Tensor) -> Tensor:
    """The buffer ``d2t`` of a draft vocabulary."""
    return vocabulary_map(t2d.nonzero().flatten(), len(t2d))[0]


@torch.no_grad()
def set_vocabulary(model: SpecBlockModel, t2d: Tensor, head: Tensor) -> None:
    """Another draft vocabulary of the same size.

    Args:
        t2d: bool [V]. head: [V, H], of whose rows the drafter's head consists.
    """
    model.t2d.copy_(t2d)
    model.d2t.copy_(_offsets(t2d))
    model.lm_head.weight.copy_(head[t2d.to(head.device)])


def ordinary_config(config, weights: Mapping[str, Tensor]):
    """The config of the folded drafter: with a corrected head, the head is its own to store."""
    corrected = bool(weights[CORRECTION[1]].any())
    return dataclasses.replace(config, target_lm_head=config.target_lm_head and not corrected)
