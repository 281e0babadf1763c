"""What drafter and target say at every position of an answer, with the feature layers as named and
with others that may have been meant.

The answer is the target's own, greedy. Both networks read it in one piece, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specblock.drafters.base import Drafter
from specblock.target.architecture.tap import FeatureTap
from specblock.training.evaluate.served import trained_log_probs

__all__ = ["Reading", "arrangements", "read_answer"]

Layers = tuple[int, ...]


def arrangements(layers: Layers, count: int) -> list[Layers]:
    """The feature layers as named, and as others may have meant them in a target of ``count``
    layers: one lower or higher (inputs taken for outputs, or the reverse), or in reverse order."""
    shifted = [tuple(layer + shift for layer in layers) for shift in (0, -1, 1)]
    possible = [one for one in shifted if min(one) >= 0 and max(one) < count]
    return list(dict.fromkeys([*possible, layers[::-1]]))


@dataclass(frozen=True)
class Reading:
    """Of one answer of n tokens behind the first.

    Attributes:
        best: int64 [n], the target's arg-max.
        drafted: int64 [n], the draft vocabulary's index of the drafter's arg-max.
        agrees: bool [n], whether the drafter's best is the target's.
        overlap: by feature layers, those it names first, float [n]: the drafter's chance to be
            accepted, the sum over the vocabulary of the lesser of both probabilities.
        not_finite: positions with NaN or infinity, by what holds them.
    """

    best: Tensor
    drafted: Tensor
    agrees: Tensor
    overlap: dict[Layers, Tensor]
    not_finite: dict[str, int]


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
    overlap, said = {}, []
    for layers in tried:
        chosen = features[:, [columns.index(layer) for layer in layers]].flatten(1)
        said.append(trained_log_probs(model, chosen, ids[1:].tolist())[rows - 1])
        overlap[layers] = torch.minimum(said[-1].exp(), theirs).sum(-1)
    own = said[0]
    to_draft = model.t2d.long().cumsum(0) - 1
    inside = own[:, model.t2d]
    bad = {
        "features": _positions(features.flatten(1)),
        "target_logits": _positions(logits),
        "draft_logits": _positions(inside),
    }
    return Reading(best, to_draft[own.argmax(-1)], own.argmax(-1) == best, overlap, bad)


def _positions(values: Tensor) -> int:
    """Rows with anything that is not finite."""
    return int((~values.isfinite()).any(-1).sum())
