"""What a new drafter is worth on prompts it has not seen, measured and in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specblock.bench.measure.methods import LOOKUP, PLAIN
from specblock.bench.runner import run
from specblock.bench.suites.prompts import BenchPrompt
from specblock.budget.controller import CopiesController
from specblock.config import GenerationConfig
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.engine.loading import UNMEASURED
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError
from specblock.fitting.prompts import is_chat
from specblock.training.data.prompts import Prompt

__all__ = ["measure", "sentence"]

DRAFTER = "specblock"
NEW_TOKENS = 64  # of a measured answer
LEAST_PROMPTS = 6  # that an interval is drawn from
_METHODS = 3  # plain, lookup, the drafter


class _Completing(Speculator):
    """Encodes a base model's prompts, which are texts to be gone on with."""

    def encode(self, prompt: Any) -> list[int]:
        if prompt and isinstance(prompt[0], dict):
            prompt = list(self.tokenizer(prompt[-1]["content"])["input_ids"])
        return super().encode(prompt)


def measure(
    speculator: Speculator,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    seconds: float,
    seed: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Plain decoding, copies of the text and the drafter answer the same prompts in turn, greedily,
    as many as ``seconds`` allow by this machine's costs.

    Returns the report of :func:`specblock.bench.runner.run`, which ``out`` holds too, with what a
    round that drafts costs at least, in plain steps (``break_even``; None where this machine could
    not be measured). A run that was cut off goes on.
    """
    costs, step = speculator.costs, None
    if costs is not None and costs is not UNMEASURED:
        step = costs.target_seconds(1)
    fitting = 0 if step is None else int(seconds / (_METHODS * NEW_TOKENS * step))
    chosen = prompts[: max(LEAST_PROMPTS, fitting)]
    asked = [
        BenchPrompt(p.id, "", tuple(p.messages[:-1]), (p.messages[-1]["content"],)) for p in chosen
    ]
    settings: dict[str, Any] = {
        "methods": _methods(speculator),
        "config": GenerationConfig(max_new_tokens=NEW_TOKENS, seed=seed),
        "seed": seed,
        "out": out,
        "progress": lambda done, of, _report: report(f"measured on {done} of {of} prompts"),
    }
    kind = Speculator if is_chat(speculator.tokenizer) else _Completing
    judge = kind(speculator.target, speculator.tokenizer)
    try:
        found = run(judge, asked, resume=True, **settings)
    except ConfigError:  # begun with another number of threads, or for fewer minutes
        found = run(judge, asked, **settings)
    least = None if step is None else costs.round_seconds(1, (), 1) / step
    return {**found, "break_even": least}


def _methods(speculator: Speculator) -> dict[str, Callable]:
    """What is compared, each with an engine of its own: none finds a prompt read already."""
    target, tokenizer, costs = speculator.target, speculator.tokenizer, speculator.costs
    plain, methods = Speculator(target, tokenizer), {PLAIN: None, LOOKUP: None, DRAFTER: speculator}
    methods[PLAIN] = plain
    if costs is None:
        del methods[LOOKUP]
    else:
        greedy = CopiesController(costs, heed_clock=True)
        methods[LOOKUP] = Speculator(
            target, tokenizer, LookupDrafter(), greedy, costs, copies=TextCopies()
        )
    return {
        name: lambda ids, config, one=one: one.generate(list(ids), config)
        for name, one in methods.items()
    }


def sentence(report: Mapping[str, Any]) -> str:
    """What the drafter is worth, from a report of :func:`measure`."""
    own = report["methods"][DRAFTER]
    speedup, count = own["speedup"], own["answers"]
    if speedup["median"] is None:
        return "nothing could be measured: no prompt was answered; give others with --prompts"
    interval = (f"{speedup['median']:.2f} times (95 % interval {speedup['low']:.2f} to "
                f"{speedup['high']:.2f}, {count} prompts)")  # fmt: skip
    if speedup["low"] > 1:
        return (f"decodes {speedup['median']:.2f} times as fast as plain on prompts it has not "
                f"seen (95 % interval {speedup['low']:.2f} to {speedup['high']:.2f}, {count} "
                "prompts)")  # fmt: skip
    return f"does not pay here, because {_reason(report, own)}: {interval}"


def _reason(report: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Why the drafter is not faster, from what was counted."""
    least, rounds = report["break_even"], own["rounds"]
    if least is None:
        return "this machine could not be measured in time; run `specblock calibrate`"
    tau, drafted = own["accepted_length"], own["speculative_rounds"]
    if not drafted:
        return (f"no draft was worth its time: a round with one draft costs {least:.2f} plain "
                "steps, and none was likely enough to be accepted")  # fmt: skip
    gain = 1 + (tau - 1) * rounds / drafted  # tokens of a round that drafts
    told = (f"a round that drafts brings {gain:.2f} tokens and costs at least {least:.2f} plain "
            "steps")  # fmt: skip
    if gain < least:
        return f"acceptance is too low for this machine's cost of drafting: {told}"
    return f"what drafting brings is within what measuring scatters ({told})"
