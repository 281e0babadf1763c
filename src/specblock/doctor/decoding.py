"""Answers, plainly and with the drafter: are they the same, and were they sooner?"""

from __future__ import annotations

from dataclasses import asdict

from specblock.bench.measure.divergence import classify
from specblock.config import GenerationConfig
from specblock.doctor.finding import Verdict, ok, warning, wrong
from specblock.doctor.patient import MOST_PROMPT_TOKENS, Answered, Patient
from specblock.engine.loading import UNMEASURED, assemble
from specblock.errors import SpecBlockError
from specblock.training.evaluate.served import compare

_NODES, _LEAVES = 8, 2  # of a round of the drafter alone: enough for branches and later blocks


def prompts(patient: Patient) -> Verdict:
    """There is something to ask."""
    asked = patient.prompts
    if not asked:
        raise SpecBlockError(
            f"No prompt has {MOST_PROMPT_TOKENS} tokens or fewer and fits half of the context: "
            "give others with --prompts."
        )
    longest = max(map(len, asked))
    return ok(f"{len(asked)}, the longest of {longest} tokens", count=len(asked), longest=longest)


def decoding(patient: Patient) -> Verdict:
    """Every prompt is answered plainly and with the drafter, one after the other."""
    request = patient.request
    patient.speculator = speculator = assemble(
        patient.network, patient.tokenizer, patient.folder, cache_dir=request.cache_dir,
        on_step=request.on_step, owned=True,
    )  # fmt: skip
    config = _settings(patient)
    for number, prompt in enumerate(patient.prompts, 1):
        request.on_step(f"answering prompt {number} of {len(patient.prompts)}")
        plain = speculator.generate(prompt, config, use_drafter=False)
        patient.answered.append(Answered(prompt, plain, speculator.generate(prompt, config)))
    tokens = sum(len(one.plain.token_ids) for one in patient.answered)
    return ok(
        f"{len(patient.answered)} prompts, {tokens} tokens",
        prompts=len(patient.answered),
        tokens=tokens,
        max_new_tokens=request.max_new_tokens,
    )


def served_as_trained(patient: Patient) -> Verdict:
    """Decoding shows the drafter what training did, and it says the same."""
    patient.speculator.target.text = None
    found = compare(
        patient.network,
        patient.drafter,
        [one.prompt for one in patient.answered],
        max_new_tokens=patient.request.max_new_tokens,
        nodes=_NODES,
        leaves=_LEAVES,
    )
    patient.tau = found.tau_served
    figures = asdict(found)
    if found.problems():
        return wrong(" ".join(found.problems()), "report it with the drafter's config", **figures)
    return ok(
        f"{found.rounds} rounds: features differ by {found.feature_error:.1e}, first tokens by "
        f"{found.log_prob_error:.1e} nats; tau {found.tau_served:.2f}, played back "
        f"{found.tau_played_back:.2f}",
        **figures,
    )


def same_output(patient: Patient) -> Verdict:
    """Speculative answers are plain decoding's, but for near-ties."""
    config, differences = _settings(patient), []
    for number, one in enumerate(patient.answered, 1):
        found = classify(
            patient.speculator, one.prompt, one.plain, one.speculative, config,
            id=f"prompt {number}", method="drafter",
        )  # fmt: skip
        differences += [] if found is None else [found]
    bugs = [found for found in differences if found.kind == "bug"]
    count = len(patient.answered)
    figures = {
        "answers": count,
        "identical": count - len(differences),
        "near_ties": len(differences) - len(bugs),
        "differences": [found.to_dict() for found in differences],
    }
    found = f"{count - len(differences)} of {count} answers identical"
    if bugs:
        first = bugs[0]
        margin = "" if first.margin is None else f", {first.margin:.2g} logits from a tie"
        return wrong(
            f"{found}; {first.id} differs at token {first.position}{margin}",
            "this is no rounding: report it with prompt, model and drafter, and decode with "
            "--drafter none until then",
            **figures,
        )
    if differences:
        return ok(f"{found}, {len(differences)} differ at a near-tie", **figures)
    return ok(found, **figures)


def pays(patient: Patient) -> Verdict:
    """The drafter saves time on these prompts, and more than it costs."""
    plain, ours = (
        [getattr(one, name).stats for one in patient.answered] for name in ("plain", "speculative")
    )
    per_token = [
        sum(s.decode_seconds for s in stats) / max(1, sum(s.new_tokens - 1 for s in stats))
        for stats in (plain, ours)
    ]
    speedup = per_token[0] / per_token[1] if per_token[1] else 1.0
    rounds = max(1, sum(s.rounds for s in ours))
    tau = sum(s.round_tokens for s in ours) / rounds
    drafting = sum(s.speculative_rounds for s in ours) / rounds
    costs = patient.speculator.costs
    if costs is UNMEASURED:
        return warning(
            f"{speedup:.2f} times plain decoding: this machine could not be measured in time, so "
            "nothing is drafted",
            "run `specblock calibrate`, which takes its time",
            speedup=speedup,
        )
    least = costs.round_seconds(1, (), 1) / costs.target_seconds(1)
    figures = {
        "speedup": speedup,
        "tau": tau,
        "tau_of_the_drafter_alone": patient.tau,
        "tau_to_break_even": least,
        "rounds_with_drafts": drafting,
    }
    found = (
        f"{speedup:.2f} times plain decoding, tau {tau:.2f}; the drafter alone {patient.tau:.2f}, "
        f"and a round with one draft costs {least:.2f} plain steps"
    )
    if patient.tau < least:
        return warning(
            found,
            "the drafter costs more than it brings: train it longer, on texts like these, or use "
            "--drafter lookup",
            **figures,
        )
    if speedup < 1:
        return warning(
            found,
            "run it again on an idle machine; if it stays, `specblock calibrate`, or train the "
            "drafter on texts like these",
            **figures,
        )
    return ok(found, **figures)


def _settings(patient: Patient) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=patient.request.max_new_tokens)
