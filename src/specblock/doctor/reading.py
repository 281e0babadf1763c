"""What drafter and target say at every position of an answer, with the feature layers as named and
with others that may have been meant.

The answer is the target's own, greedy. Both networks read it in one piece, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor, nn

from specblock.drafters.base import Drafter
from specblock.target.architecture.tap import FeatureTap
from specblock.training.evaluate.served import trained_log_probs

__all__ = ["Reading", "arrangements", "read_answer"]

Layers = tuple[int, ...]
_FEW = 3  # layers: six orders, each of which costs a forward of the drafter


def arrangements(layers: Layers, count: int) -> list[Layers]:
    """The feature layers as named, and as others may have meant them in a target of ``count``
    layers: one lower or higher (inputs taken for outputs, or the reverse), or in another order: any
    of up to three, of more in reverse or with two neighbours swapped."""
    shifted = [tuple(layer + shift for layer in layers) for shift in (0, -1, 1)]
    possible = [one for one in shifted if min(one) >= 0 and max(one) < count]
    if len(layers) <= _FEW:
        orders = list(permutations(layers))
    else:
        swaps = range(len(layers) - 1)
        orders = [(*layers[:i], layers[i + 1], layers[i], *layers[i + 2 :]) for i in swaps]
        orders.append(layers[::-1])
    return list(dict.fromkeys([*possible, *orders]))


@dataclass(frozen=True)
class Reading:
    """Of one answer of n tokens behind the first.

    Attributes:
        best: int64 [n], the target's arg-max.
        drafted: int64 [n], the draft vocabulary's index of the drafter's arg-max.
        agreement: by feature layers, those it names first, bool [n]: whether the drafter's best is
            the target's.
        overlap: the same way, float [n]: the drafter's chance to be accepted, the sum over the
            vocabulary of the lesser of both probabilities.
        not_finite: positions with NaN or infinity, by what holds them.
    """

    best: Tensor
    drafted: Tensor
    agreement: dict[Layers, Tensor]
    overlap: dict[Layers, Tensor]
    not_finite: dict[str, int]

    @property
    def agrees(self) -> Tensor:
        """bool [n], with the layers that the drafter names."""
        return next(iter(self.agreement.values()))


@torch.no_grad()
def read_answer(
    network: nn.Module, drafter: Drafter, prompt: Sequence[int], answer: Sequence[int]
) -> Reading:
    """Both networks on one text, for every one of the :func:`arrangements`."""
    model = drafter.model
    tried = arrangements(drafter.feature_layers, model.config.target_layers)
    columns = sorted({layer for layers in tried for layer in layers})
    ids = torch.tensor([*prompt, *answer], device=network.device)
    tap = FeatureTap(network, tuple(columns))
    with tap:
        # row p of the logits says what follows position p; the drafter's pair p - 1 says the same
        rows = torch.arange(len(prompt), len(ids) - 1, device=ids.device)
        output = network(input_ids=ids[None, :-1], use_cache=False, logits_to_keep=rows)
    features = tap.take()[0].unflatten(-1, (len(columns), -1))
    logits = output.logits[0].float()
    theirs, best = logits.softmax(-1), logits.argmax(-1)
    overlap, agreement, own = {}, {}, None
    for layers in tried:
        chosen = features[:, [columns.index(layer) for layer in layers]].flatten(1)
        said = trained_log_probs(model, chosen, ids[1:].tolist())[rows - 1]
        overlap[layers] = torch.minimum(said.exp(), theirs).sum(-1)
        agreement[layers] = said.argmax(-1) == best
        own = said if own is None else own
    to_draft = model.t2d.long().cumsum(0) - 1
    inside = own[:, model.t2d]
    bad = {
        "features": _positions(features.flatten(1)),
        "target_logits": _positions(logits),
        "draft_logits": _positions(inside),
    }
    return Reading(best, to_draft[own.argmax(-1)], agreement, overlap, bad)


def _positions(values: Tensor) -> int:
    """Rows with anything that is not finite."""
    return int((~values.isfinite()).any(-1).sum())
