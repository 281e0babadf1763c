"""Numbers that are none, in the dtype that is served: weights, features and logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specblock.doctor.finding import WRONG, Verdict, ok, warning, wrong
from specblock.doctor.patient import Patient
from specblock.doctor.reading import read_answer

_SHOWN = 3  # names in a sentence
_ADVICE = "copy or download the weights again; if they are whole, use --dtype float32 or bfloat16"


@torch.no_grad()
def target_numbers(patient: Patient) -> Verdict:
    """All weights of the target are finite, and so is what its layers make of a prompt."""
    found = _weights(patient.network)
    if found.verdict == WRONG:
        return found
    ids = torch.tensor([patient.prompts[0]], device=patient.network.device)
    output = patient.network(input_ids=ids, use_cache=False, output_hidden_states=True)
    bad = [layer for layer, states in enumerate(output.hidden_states) if not _all_finite(states)]
    if bad or not _all_finite(output.logits):
        where = f"what layer {max(0, bad[0] - 1)} gives" if bad else "the logits"
        return wrong(
            f"all weights are finite, but {where} holds NaN or infinity",
            "use --dtype float32 or bfloat16: float16 ends at 65504",
            first_state=bad[0] if bad else None,
            **found.figures,
        )
    return ok(f"{found.found}, and so are features and logits", **found.figures)


def drafter_numbers(patient: Patient) -> Verdict:
    """All weights of the drafter are finite."""
    return _weights(patient.drafter.model)


@torch.no_grad()
def _weights(network: nn.Module) -> Verdict:
    named = list(network.named_parameters())
    bad = [name for name, weight in named if not _all_finite(weight)]
    dtype = str(named[0][1].dtype).removeprefix("torch.")
    figures = {"weights": len(named), "dtype": dtype, "not_finite": bad}
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        listed = ", ".join(bad[:_SHOWN])
        return wrong(f"NaN or infinity in {listed}{more}", _ADVICE, **figures)
    return ok(f"{len(named)} weights finite in {dtype}", **figures)


def _all_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def numbers_of_answers(patient: Patient) -> Verdict:
    """Features, draft logits and target logits of the answers are finite."""
    read = patient.readings = [
        read_answer(patient.network, patient.drafter, one.prompt, one.plain.token_ids)
        for one in patient.answered
        if len(one.plain.token_ids) > 1
    ]
    if not read:
        return warning(
            "all answers ended with their first token, so nothing can be measured",
            "ask for more: a higher --max-new-tokens, or other --prompts",
            rows=0,
        )
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
