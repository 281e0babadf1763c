"""What rounds cost on some machine with some target, for every kind of drafter."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specblock.bench.playback.published import paper_tables
from specblock.bench.playback.roofline import H100, roofline_tables
from specblock.budget.costs import CostTable
from specblock.errors import ConfigError

__all__ = ["SHIPPED", "CostSheet", "find_sheet"]


@dataclass(frozen=True)
class CostSheet:
    """Cost tables of one machine and target.

    Attributes:
        name: what reports call it.
        about: machine and target, for readers.
        source: where the seconds come from: a measurement, or a derivation.
        tables: by kind of drafter (``drafter_type``); they agree on what the target costs.
    """

    name: str
    about: str
    source: str
    tables: Mapping[str, CostTable]

    def __post_init__(self) -> None:
        if len({table.plain_rate for table in self.tables.values()}) != 1:
            raise ValueError("A cost sheet needs tables, all with the same seconds of a plain step")

    @property
    def plain_seconds(self) -> float:
        """Of a plain step."""
        return next(iter(self.tables.values())).target_seconds(1)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, fit for JSON."""
        tables = {kind: table.to_dict() for kind, table in self.tables.items()}
        return {"name": self.name, "about": self.about, "source": self.source, "tables": tables}

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> CostSheet:
        """Raises KeyError, TypeError or ValueError for what is no sheet."""
        tables = {kind: CostTable.from_dict(own) for kind, own in state["tables"].items()}
        return CostSheet(str(state["name"]), str(state["about"]), str(state["source"]), tables)


def _paper() -> CostSheet:
    return CostSheet(
        "paper-a100-llama-3.1-8b",
        "A100-80GB, Llama-3.1-8B, as published",
        "derived from the paper's speed-ups, accepted lengths and shares of drafting",
        paper_tables(),
    )


def _h100(shape: str) -> CostSheet:
    return CostSheet(
        f"h100-{shape}",
        f"H100, the shape of {shape} in bfloat16, captured launches",
        f"a roofline: {H100.describe()}",
        roofline_tables(shape, H100),
    )


SHIPPED = {
    "paper-a100-llama-3.1-8b": _paper,
    "h100-llama-3.1-8b": lambda: _h100("llama-3.1-8b"),
    "h100-qwen3-8b": lambda: _h100("qwen3-8b"),
}


def find_sheet(name: str) -> CostSheet:
    """The sheet that ships under ``name``, or the one in the file ``name``.

    Raises :class:`ConfigError` where there is neither, or the file holds no sheet.
    """
    if name in SHIPPED:
        return SHIPPED[name]()
    path = Path(name)
    if not path.exists():
        near = difflib.get_close_matches(name, SHIPPED, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"what ships: {', '.join(SHIPPED)}."
        raise ConfigError(f"There is no cost sheet '{name}'; {hint}")
    try:
        return CostSheet.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no cost sheet ({error}); make one with `specblock bench-cost --sheet`."
        ) from None
