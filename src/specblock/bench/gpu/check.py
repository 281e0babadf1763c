"""Stage 1: is decoding on this device what it is on a CPU?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from specblock.bench.gpu.record import Record
from specblock.bench.gpu.scale import Scale
from specblock.bench.gpu.subject import PROMPTS, Subject, subject
from specblock.bench.measure.field import Field, Measured, assemble_field
from specblock.bench.runner import run
from specblock.bench.suites.prompts import BenchPrompt
from specblock.budget.costs import CostTable
from specblock.config import GenerationConfig
from specblock.kernels.route_table import RouteTable
from specblock.target.model import Target
from specblock.target.static import StaticTarget
from specblock.tree.draft_tree import DraftTree

__all__ = ["check"]

METHODS = ("plain", "lookup", "eagle3", "specblock-paper", "specblock")
# a machine on which nodes are cheap, so that measured budgets draft; no clock decides here
_CHEAP = CostTable({1: 1.0, 96: 1.2}, {1: 0.01, 8: 0.02}, {1: 0.01, 28: 0.02})
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.5}


def check(scale: Scale, record: Record, work: Path) -> None:
    """Tree masks, static rows, losslessness greedy and seeded, near-ties, several requests."""
    own = subject(scale, work, torch.float32)
    record.item("tree mask, float32", lambda: tree_mask(own, torch.float32))
    record.item("static rows, float32", lambda: static_rows(own))
    for name, temperature in (("greedy", 0.0), ("seeded", 0.8)):
        record.item(f"{name}, float32", lambda t=temperature: lossless(own, scale, t))
    record.item("four requests, float32", lambda: several(own, scale))
    half = subject(scale, work, torch.bfloat16)
    record.item("tree mask, bfloat16", lambda: tree_mask(half, torch.bfloat16))
    record.item("greedy, bfloat16", lambda: lossless(half, scale, 0.0))


def tree_mask(own: Subject, dtype: torch.dtype) -> dict[str, Any]:
    """The largest difference of a node's logits from those of its path alone.

    Raises AssertionError where it is more than rounding explains.
    """
    target = Target(own.network, exact=False)
    device = target.device
    prompt = torch.arange(2, 34, device=device)
    # two children of the root, two of the first, one below: every relation that there is
    parents = torch.tensor([-1, 0, 0, 1, 1, 3], device=device)
    depths = torch.tensor([0, 1, 1, 2, 2, 3], device=device)
    tokens = torch.tensor([40, 50, 60, 70, 80, 90], device=device)
    zero = torch.zeros(6, device=device)
    tree = DraftTree(tokens, parents, depths, zero, zero, torch.zeros_like(parents))
    target.reset(64)
    target.prefill(prompt)
    together = target.verify(tree).logits
    largest = 0.0
    for node in range(6):
        path, at = [], node
        while at >= 0:
            path.insert(0, int(tokens[at]))
            at = int(parents[at])
        target.reset(64)
        alone = target.prefill(torch.cat((prompt, torch.tensor(path, device=device)))).logits
        largest = max(largest, float((together[node] - alone.flatten()).abs().max()))
    assert largest <= _TOLERANCE[dtype], f"logits differ by {largest:.3g}"
    return {"largest_difference": largest}


def static_rows(own: Subject) -> dict[str, Any]:
    """The same of verification with static shapes, captured where there is a GPU."""
    dynamic, static = Target(own.network, exact=False), StaticTarget(own.network)
    tokens = torch.arange(40, 49, device=dynamic.device)
    parents = torch.arange(-1, 8, device=tokens.device)
    zero = torch.zeros(9, device=tokens.device)
    tree = DraftTree(tokens, parents, parents + 1, zero, zero, torch.zeros_like(parents))
    found = []
    for target in (dynamic, static):
        target.reset(64)
        target.prefill(torch.arange(2, 34, device=tokens.device))
        found.append(target.verify(tree).logits)
    largest = float((found[0] - found[1]).abs().max())
    assert largest <= _TOLERANCE[torch.float32], f"logits differ by {largest:.3g}"
    return {"largest_difference": largest, "captured": static.recorder.captures}


def lossless(own: Subject, scale: Scale, temperature: float) -> dict[str, Any]:
    """Answers of all methods against plain decoding's; differences are near-ties or bugs.

    Raises AssertionError for a bug.
    """
    field = cheap_field(own)
    config = GenerationConfig(max_new_tokens=scale.new_tokens // 2, temperature=temperature, seed=1)
    asked = [BenchPrompt(f"p{n}", "check", (), (text,)) for n, text in enumerate(PROMPTS)]
    report = run(field.judge, asked[: scale.prompts], methods=field.contenders, config=config)
    bugs = [one for one in report["divergences"] if one["kind"] != "near-tie"]
    found = {
        "answers": len(report["rows"]),
        "near_ties": len(report["divergences"]) - len(bugs),
        "largest_margin": max((d["margin"] or 0.0 for d in report["divergences"]), default=0.0),
        "accepted_length": {n: m["accepted_length"] for n, m in report["methods"].items()},
    }
    assert not bugs, f"{len(bugs)} answers differ beyond near-ties: {bugs[:3]}"
    return found


def several(own: Subject, scale: Scale) -> dict[str, Any]:
    """Four requests written together, against each alone.

    Raises AssertionError where one differs.
    """
    speculator = cheap_field(own).contenders["specblock"].speculator
    config = GenerationConfig(max_new_tokens=scale.new_tokens)
    together = speculator.generate(list(PROMPTS), config)
    alone = [speculator.generate(prompt, config) for prompt in PROMPTS]
    pairs = zip(together, alone, strict=True)
    same = [one.token_ids == other.token_ids for one, other in pairs]
    assert all(same), f"{same.count(False)} of {len(same)} answers differ"
    return {"answers": len(same)}


def cheap_field(own: Subject) -> Field:
    """All methods with made-up costs: nothing is measured."""
    measured = Measured(RouteTable(), {"": _CHEAP, **dict.fromkeys(METHODS, _CHEAP)})
    return assemble_field(
        own.network, own.tokenizer, METHODS, own.folders, exact=False, measured=measured
    )
