"""The methods that can be compared, by name: what drafts, with which settings and budget."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specblock.drafters.registry import find_kind
from specblock.errors import ConfigError

__all__ = ["COMPILED", "LOOKUP", "METHODS", "NODES", "PAIRS", "PLAIN", "MethodSpec", "resolve"]

PLAIN, COMPILED, LOOKUP = "plain", "plain-compiled", "lookup"
NODES = 60  # of a fixed budget, as EAGLE-3 and SpecBlock are published


@dataclass(frozen=True)
class MethodSpec:
    """One method.

    Attributes:
        kind: ``drafter_type`` of the weights it needs; None where it needs none.
        measured: its budget comes from the measured cost table, else it is ``NODES`` every round.
        copies: what followed the same words earlier in the text is drafted along.
        settings: of its drafter, see :data:`specblock.drafters.registry.KINDS`.
        summary: what it is, for readers of a report.
    """

    kind: str | None
    measured: bool
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    copies: bool = False


_EAGLE3 = {"depth": 7, "top_k": 10, "max_nodes": NODES}
_COSTED = {"depth": 7, "top_k": 10}
METHODS = {
    PLAIN: MethodSpec(None, False, "one token a step"),
    COMPILED: MethodSpec(None, False, "one token a step, the step compiled by PyTorch"),
    LOOKUP: MethodSpec(
        None, True, "copies what followed the longest match in the text so far", copies=True
    ),
    "parallel": MethodSpec("parallel", True, "independent heads for the next positions"),
    "eagle3": MethodSpec(
        "eagle3", False, f"EAGLE-3: depth 7, top-k 10, {NODES} nodes every round", _EAGLE3
    ),
    "eagle3-chain": MethodSpec(
        "eagle3", False, "EAGLE-3 drafting one chain of 8 tokens", {"depth": 7, "top_k": 1}
    ),
    "eagle3-cost": MethodSpec(
        "eagle3",
        True,
        "EAGLE-3 with levels and nodes from the measured costs",
        _COSTED,
    ),
    "eagle3-full": MethodSpec("eagle3", True, "eagle3-cost with copies of the text", _COSTED, True),
    "specblock-paper": MethodSpec(
        "specblock",
        False,
        f"SpecBlock with its rank policy, {NODES} nodes every round",
        {"max_nodes": NODES},
    ),
    "specblock-cost": MethodSpec(
        "specblock", True, "SpecBlock with blocks and nodes from the measured costs"
    ),
    "specblock": MethodSpec(
        "specblock", True, "what ships: specblock-cost with copies of the text", copies=True
    ),
}

# Which method shows what another is worth: drafters under the same rule, and what the text alone
# would have done.
PAIRS = (
    ("specblock-paper", "eagle3"),
    ("specblock-cost", "eagle3-cost"),
    ("specblock", "eagle3-full"),
    ("specblock", "lookup"),
    ("specblock", "specblock-cost"),
)


def resolve(names: Sequence[str]) -> dict[str, MethodSpec]:
    """The methods by name, in the order given; the name of a kind of drafter is one, too.

    Raises:
        ConfigError: there is no such method (the nearest name is suggested), or none is named.
    """
    if not names:
        raise ConfigError(f"Name at least one method out of {', '.join(METHODS)}.")
    return {name: METHODS.get(name) or _of_kind(name) for name in names}


def _of_kind(name: str) -> MethodSpec:
    """A registered kind of drafter with the measured budget."""
    if find_kind(name) is None:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(METHODS)}."
        raise ConfigError(f"There is no method '{name}'; {hint}")
    return MethodSpec(name, True, f"{name} with nodes from the measured costs")
