"""What only shows in what a drafter says: other layers, another vocabulary, another target."""

from __future__ import annotations

import torch
from torch import Tensor

from specblock.doctor.finding import Verdict, ok, warning, wrong
from specblock.doctor.patient import Patient
from specblock.drafters.checkpoint import read_extra

# Standard errors of a mean of paired differences: chance goes so far once in some 700 times.
CLEAR = 3.0
_PERHAPS = 1.0  # a sound drafter is not even near: other layers cost it several
# what training writes into a checkpoint: accuracy of the first token
_RECORDED = "accuracy_b1s0"
# Texts differ, and so does accuracy on them: the drafters that ship have five sixths of it on our
# prompts. Less than two thirds is no matter of texts any more.
_NEAR = 2 / 3


def layers_measured(patient: Patient) -> Verdict:
    """The drafter agrees with the target better on the layers it names than on others that may
    have been meant."""
    rates = {
        layers: torch.cat([reading.overlap[layers] for reading in patient.readings])
        for layers in patient.readings[0].overlap
    }
    named, *others = rates
    own = rates[named]
    figures = {
        "acceptance": {_listed(layers): float(rate.mean()) for layers, rate in rates.items()},
        "standard_errors": {_listed(layers): _errors(rates[layers], own) for layers in others},
        "rows": len(own),
    }
    told = ", ".join(f"{rates[layers].mean():.0%} with {_listed(layers)}" for layers in others)
    found = f"a first token is accepted {own.mean():.0%} of the time, {told}"
    best = max(others, key=lambda layers: float(rates[layers].mean()), default=named)
    better = _errors(rates[best], own)
    if better > CLEAR and not _explains(patient, best):
        return warning(
            f"{found}; layers {_listed(best)} do a little better, and are no explanation: in "
            f"training its best token was right {_recorded(patient):.0%} of the time",
            "the layers are not what is amiss: see 'first token'",
            **figures,
        )
    if better > CLEAR:
        advice = f"`specblock convert --feature-layers {_listed(best)}`"
        if not patient.published:
            advice = f"make its folder again from what it came from; of a published one {advice}"
        return wrong(found, advice, **figures)
    if better > _PERHAPS:
        return warning(
            f"{found}; layers {_listed(best)} may be meant",
            f"ask more prompts to be sure: --limit {4 * len(patient.answered)}",
            **figures,
        )
    return ok(found, **figures)


def _explains(patient: Patient, layers: tuple[int, ...]) -> bool:
    """Whether with these layers the drafter is about as good as it was in training, or at least
    half of what it lacks is there; True where nothing was recorded."""
    recorded = _recorded(patient)
    if recorded is None:
        return True
    own = float(_joined(patient, "agrees").float().mean())
    hits = torch.cat([reading.agreement[layers] for reading in patient.readings])
    theirs = float(hits.float().mean())
    return theirs >= _NEAR * recorded or theirs - own >= (recorded - own) / 2


def _recorded(patient: Patient) -> float | None:
    """How often its best token was the target's in training, on held-out answers."""
    return read_extra(patient.folder).get("held_out", {}).get(_RECORDED)


def map_measured(patient: Patient) -> Verdict:
    """What the target says is in the draft vocabulary, and the map is the one the head was
    trained with.

    A map is learned from half of the positions, for each draft token the target token that came
    most often, and tried on the other half. It knows a few tokens only, so it beats a map that is
    right nowhere; and it has to beat one token for all, which any drafter does.
    """
    best, drafted = _joined(patient, "best"), _joined(patient, "drafted")
    agrees = _joined(patient, "agrees").float()
    t2d = patient.drafter.model.t2d
    inside = t2d[best]
    chance = float(t2d.float().mean())
    learned = _learned_hits(drafted, best).float()
    constant = (best == best.mode().values).float()
    figures = {
        "coverage": float(inside.float().mean()),
        "coverage_by_chance": chance,
        "agreement": float(agrees.mean()),
        "agreement_of_learned_map": float(learned.mean()),
        "rows": len(best),
    }
    found = (
        f"{figures['coverage']:.0%} of the target's tokens can be drafted ({chance:.0%} by chance)"
    )
    if _errors(learned, agrees) > CLEAR and _errors(learned, constant) > CLEAR:
        return wrong(
            f"the drafter's best token is the target's {agrees.mean():.0%} of the time, and "
            f"{learned.mean():.0%} with a map learned from half of the positions",
            "d2t and t2d are not those that the head was trained with: take both from the "
            "checkpoint that lm_head.weight is from",
            **figures,
        )
    if chance < 1 and _errors(inside.float(), torch.full_like(agrees, chance)) < CLEAR:
        return wrong(
            found,
            "the draft vocabulary is not this target's frequent tokens: use the map of this "
            "target, or train again",
            **figures,
        )
    missed = 1 - figures["coverage"]
    if missed > 1 - float(agrees.mean()) - missed:  # more than all other misses
        return warning(
            found,
            "most misses are tokens that cannot be drafted: train with a larger draft vocabulary, "
            "or on texts like these",
            **figures,
        )
    return ok(found, **figures)


def first_token(patient: Patient) -> Verdict:
    """The drafter knows more than which token is the most frequent."""
    best, agrees = _joined(patient, "best"), _joined(patient, "agrees").float()
    constant = (best == best.mode().values).float()
    recorded = _recorded(patient)
    figures = {
        "agreement": float(agrees.mean()),
        "recorded": recorded,
        "most_frequent": float(constant.mean()),
        "standard_errors": _errors(agrees, constant),
        "rows": len(best),
    }
    found = (
        f"the drafter's best token is the target's {agrees.mean():.0%} of the time, always the "
        f"most frequent one would be {constant.mean():.0%}"
    )
    if recorded is not None:
        found += f"; when it was trained it was {recorded:.0%} on held-out answers"
    if float(agrees.mean()) <= float(constant.mean()):
        return wrong(
            found,
            "it was trained for another target, reads other features than it was trained with, or "
            "its config has another wiring (norm_before_residual, norm_before_fc, norm_output, "
            "rope_theta): compare with its training",
            **figures,
        )
    if recorded is not None and _errors(torch.full_like(agrees, _NEAR * recorded), agrees) > CLEAR:
        return warning(
            found,
            "if these prompts are like those it was trained for, the target, its template or its "
            "numbers are not what they were then",
            **figures,
        )
    if figures["standard_errors"] < CLEAR:
        return warning(found, "ask more prompts (--limit), or train the drafter longer", **figures)
    return ok(found, **figures)


def _listed(layers: tuple[int, ...]) -> str:
    return ",".join(map(str, layers))


def _joined(patient: Patient, name: str) -> Tensor:
    """One figure of all positions of all answers."""
    return torch.cat([getattr(reading, name) for reading in patient.readings])


def _errors(one: Tensor, other: Tensor) -> float:
    """By how many standard errors the first is larger in the mean, position by position."""
    apart = one.double() - other.double()
    spread = float(apart.std()) if len(apart) > 1 else 0.0
    mean = float(apart.mean())
    if spread == 0.0:
        return 0.0 if mean == 0.0 else float("inf") if mean > 0 else float("-inf")
    return mean / spread * len(apart) ** 0.5


def _learned_hits(drafted: Tensor, best: Tensor) -> Tensor:
    """bool [n]: whether a map learned from every other position is right at each."""
    hits = torch.zeros_like(best, dtype=torch.bool)
    for half in (0, 1):
        learned = {
            int(token): int(best[1 - half :: 2][drafted[1 - half :: 2] == token].mode().values)
            for token in drafted[1 - half :: 2].unique()
        }
        guesses = [learned.get(int(token), -1) for token in drafted[half::2]]
        hits[half::2] = torch.tensor(guesses, device=best.device) == best[half::2]
    return hits
