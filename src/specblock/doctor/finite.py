"""Numbers that are none, in the dtype that is served: weights, features and logits."""

from __future__ import annotations

import torch
from torch import nn

from specblock.doctor.finding import Verdict, ok, skipped, wrong
from specblock.doctor.patient import Patient
from specblock.doctor.reading import read_answer

_SHOWN = 3  # names in a sentence
_ADVICE = "copy or download the weights again; if they are whole, use --dtype float32 or bfloat16"


def target_weights(patient: Patient) -> Verdict:
    """All weights of the target are finite."""
    return _weights(patient.network)


def drafter_weights(patient: Patient) -> Verdict:
    """All weights of the drafter are finite."""
    return _weights(patient.drafter.model)


@torch.no_grad()
def _weights(network: nn.Module) -> Verdict:
    named = list(network.named_parameters())
    bad = [name for name, weight in named if not bool(weight.isfinite().all())]
    figures = {"weights": len(named), "not_finite": bad}
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        listed = ", ".join(bad[:_SHOWN])
        return wrong(f"NaN or infinity in {listed}{more}", _ADVICE, **figures)
    dtype = str(named[0][1].dtype).removeprefix("torch.")
    return ok(f"{len(named)} weights finite in {dtype}", dtype=dtype, **figures)


def values(patient: Patient) -> Verdict:
    """Features, draft logits and target logits of the answers are finite."""
    read = patient.readings = [
        read_answer(patient.network, patient.drafter, one.prompt, one.plain.token_ids)
        for one in patient.answered
        if len(one.plain.token_ids) > 1
    ]
    if not read:
        return skipped("all answers ended with their first token: ask other --prompts")
    counts = {name: sum(one.not_finite[name] for one in read) for name in read[0].not_finite}
    bad = [f"{name.replace('_', ' ')} at {count}" for name, count in counts.items() if count]
    rows = sum(len(one.best) for one in read)
    if bad:
        return wrong(
            f"NaN or infinity in {', '.join(bad)} of {rows} positions",
            "use --dtype float32 or bfloat16: float16 ends at 65504",
            rows=rows,
            **counts,
        )
    return ok(f"features and logits finite at {rows} positions", rows=rows, **counts)
