"""What drafter and target say at every position of an answer, with the feature layers as named and
with their neighbours'.

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

__all__ = ["SHIFTS", "Reading", "read_answer"]

SHIFTS = (0, -1, 1)  # a layer's input taken for its output, or the reverse


@dataclass(frozen=True)
class Reading:
    """Of one answer of n tokens behind the first.

    Attributes:
        best: int64 [n], the target's arg-max.
        drafted: int64 [n], the draft vocabulary's index of the drafter's arg-max.
        agrees: by shift of the feature layers, bool [n], whether the drafter's best is the
            target's.
        overlap: by shift, float [n], the drafter's chance to be accepted: sum over the vocabulary
            of the lesser of both probabilities.
        not_finite: positions with NaN or infinity, by what holds them.
    """

    best: Tensor
    drafted: Tensor
    agrees: dict[int, Tensor]
    overlap: dict[int, Tensor]
    not_finite: dict[str, int]


@torch.no_grad()
def read_answer(
    network: nn.Module, drafter: Drafter, prompt: Sequence[int], answer: Sequence[int]
) -> Reading:
    """Both networks on one text. Shifts that name layers the target does not have are left out."""
    model, layers = drafter.model, drafter.feature_layers
    count = model.config.target_layers
    shifts = [s for s in SHIFTS if all(0 <= layer + s < count for layer in layers)]
    columns = sorted({layer + shift for layer in layers for shift in shifts})
    ids = torch.tensor([*prompt, *answer], device=network.device)
    tap = FeatureTap(network, tuple(columns))
    with tap:
        # row p of the logits says what follows position p; the drafter's pair p - 1 says the same
        rows = torch.arange(len(prompt), len(ids) - 1, device=ids.device)
        output = network(input_ids=ids[None, :-1], use_cache=False, logits_to_keep=rows)
    features = tap.take()[0].unflatten(-1, (len(columns), -1))
    logits = output.logits[0].float()
    theirs, best = logits.softmax(-1), logits.argmax(-1)
    agrees, overlap, said = {}, {}, None
    for shift in shifts:
        chosen = features[:, [columns.index(layer + shift) for layer in layers]].flatten(1)
        ours = trained_log_probs(model, chosen, ids[1:].tolist())[rows - 1]
        said = ours if shift == 0 else said
        agrees[shift] = ours.argmax(-1) == best
        overlap[shift] = torch.minimum(ours.exp(), theirs).sum(-1)
    to_draft = model.t2d.long().cumsum(0) - 1
    inside = said[:, model.t2d]
    bad = {
        "features": _positions(features.flatten(1)),
        "target_logits": _positions(logits),
        "draft_logits": _positions(inside),
    }
    return Reading(best, to_draft[said.argmax(-1)], agrees, overlap, bad)


def _positions(values: Tensor) -> int:
    """Rows with anything that is not finite."""
    return int((~values.isfinite()).any(-1).sum())
