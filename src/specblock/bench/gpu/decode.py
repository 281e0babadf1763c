"""Stages 4 and 5: methods against each other by the clock, and one round kernel by kernel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from specblock.bench import load_suite
from specblock.bench.gpu.record import Record
from specblock.bench.gpu.scale import Scale
from specblock.bench.gpu.subject import PROMPTS, subject
from specblock.bench.load.run import measure
from specblock.bench.measure.compiled import CompiledTarget
from specblock.bench.measure.contender import Contender
from specblock.bench.measure.field import Field, assemble_field
from specblock.bench.measure.meter import MeteredDrafter
from specblock.bench.measure.methods import COMPILED
from specblock.bench.measure.profile import profile_rounds
from specblock.bench.runner import run
from specblock.config import GenerationConfig
from specblock.drafters.base import FixedBudget
from specblock.drafters.static.drafter import StaticDrafter
from specblock.engine.speculator import Speculator
from specblock.own import Own
from specblock.target.static import StaticTarget

__all__ = ["bench", "profile"]

_PROFILED = 32  # tokens: every operator of them is an event in memory
CAPTURED = ("plain", "eagle3", "specblock-paper")  # also with captured forwards


def bench(scale: Scale, record: Record, work: Path) -> None:
    """One request at a time, then several clients."""
    own = subject(scale, work)
    methods = [name for name in scale.methods if name != COMPILED]
    field = assemble_field(own.network, own.tokenizer, methods, own.folders, exact=False)
    record.item("one request", partial(one_request, field, scale, record.folder))
    record.item("clients", partial(clients, field, scale, record.folder))


def one_request(field: Field, scale: Scale, folder: Path) -> dict[str, Any]:
    """All methods in turns; the report is a file for ``specblock report``."""
    contenders, left_out = {**field.contenders, **captured(field)}, {}
    if COMPILED in scale.methods:
        # a machine without a compiler, or one that fails, must not cost the others' figures
        with Own() as compiling:
            contenders[COMPILED] = compiled(field)
        if compiling.error is not None:
            left_out[COMPILED] = str(compiling.error)
    config = GenerationConfig(max_new_tokens=scale.new_tokens)
    report = run(
        field.judge,
        load_suite(None, limit=scale.prompts),
        methods=contenders,
        config=config,
        out=folder / "bench-one.json",
        costs=field.measured.costs,
        about={"contenders": field.about, "suite": "own", "budget": "measured", "exact": False},
    )
    keys = ("tokens_per_second", "accepted_length", "speedup", "identical_answers", "answers")
    found = {name: {key: own[key] for key in keys} for name, own in report["methods"].items()}
    graphs = contenders["plain, captured"].speculator.target.recorder.captures
    differing = len(report["divergences"])
    return {
        "methods": found, "divergences": differing, "captured": graphs, "left_out": left_out,
    }  # fmt: skip


def compiled(field: Field) -> Contender:
    """Plain decoding, its step compiled."""
    plain = field.judge.target
    target = CompiledTarget(plain.model, plain.exact, field.measured.routes)
    return Contender(Speculator(target, field.judge.tokenizer))


def captured(field: Field) -> dict[str, Contender]:
    """Methods whose verifications and drafts have static shapes; budgets are fixed."""
    found = {}
    for name in CAPTURED:
        if name not in field.contenders:
            continue
        before = field.contenders[name].speculator
        target = StaticTarget(before.target.model, before.target.feature_layers)
        drafter = before.drafter
        if drafter is None:
            speculator = Speculator(target, before.tokenizer)
        else:
            metered = MeteredDrafter(StaticDrafter(drafter.drafter.another()))
            speculator = Speculator(target, before.tokenizer, metered, FixedBudget(60))
        found[f"{name}, captured"] = Contender(speculator)
    return found


def clients(field: Field, scale: Scale, folder: Path) -> dict[str, Any]:
    """Plain decoding and SpecBlock with as many clients as asked for."""
    speculator = field.contenders["specblock"].speculator
    prompts = [speculator.encode(text) for text in PROMPTS[: scale.prompts]]
    config = GenerationConfig(max_new_tokens=scale.new_tokens)
    report = measure(
        speculator, prompts, scale.clients, ["plain", "specblock"], config,
        out=folder / "bench-clients.json",
    )  # fmt: skip
    return {"load": report["load"]}


def profile(scale: Scale, record: Record, work: Path) -> None:
    """A round of SpecBlock at 60 nodes, dynamic and captured, operator by operator."""
    own = subject(scale, work)
    name = "specblock-paper"
    field = assemble_field(
        own.network, own.tokenizer, [name], own.folders, budget="fixed", exact=False
    )
    ids = field.judge.encode(PROMPTS[0])
    config = GenerationConfig(max_new_tokens=min(_PROFILED, scale.new_tokens), ignore_eos=True)

    def rounds(contender: Contender) -> dict[str, Any]:
        contender(ids, config)  # warms up
        return profile_rounds(contender, ids, config).to_dict()

    for title, contender in {**captured(field), **field.contenders}.items():
        record.item(title, partial(rounds, contender))
