"""What the doorway keeps of a model between two calls: everything but the model.

A model belongs to its program. Whoever forgets it must get its memory back, so nothing that is kept
here refers to it; a target is made anew for every call, which takes some milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn

from specblock.budget.costs import CostTable
from specblock.drafters.base import Budget, Drafter
from specblock.drafters.lookup.copies import TextCopies
from specblock.engine.loading import assemble
from specblock.engine.named_drafter import find_drafter
from specblock.engine.speculator import Speculator
from specblock.kernels.route_table import RouteTable
from specblock.target.model import Target


@dataclass(frozen=True)
class Kept:
    """A drafter, and what was measured and learned with it for a model of this device and dtype."""

    device: torch.device
    dtype: torch.dtype
    exact: bool
    attention: str  # the model's own
    routes: RouteTable
    drafter: Drafter | None
    budget: Budget | None
    costs: CostTable | None
    sampling_budget: Budget | None
    copies: TextCopies | None

    @classmethod
    def of(cls, speculator: Speculator) -> Kept:
        target = speculator.target
        return cls(
            target.device, target.dtype, target.exact, _attention_of(target.model),
            target.loan.table, speculator.drafter, speculator.budget, speculator.costs,
            speculator.sampling_budget, speculator.copies,
        )  # fmt: skip

    def fits(self, model: nn.Module) -> bool:
        """Whether the model is still where and as it was."""
        found = model.device, model.dtype, _attention_of(model)
        return found == (self.device, self.dtype, self.attention)

    def around(self, model: nn.Module) -> Speculator:
        """A speculator for ``model``."""
        layers = () if self.drafter is None else self.drafter.feature_layers
        target = Target(model, layers, exact=self.exact)
        target.use_routes(self.routes)
        return Speculator(
            target, None, self.drafter, self.budget, self.costs, self.sampling_budget,
            copies=self.copies,
        )  # fmt: skip


def _attention_of(model: nn.Module) -> str:
    return str(getattr(model.config, "_attn_implementation", ""))


_kept: WeakKeyDictionary[nn.Module, dict[str, Kept]] = WeakKeyDictionary()


def speculator_for(model: nn.Module, drafter: str | Path | None) -> Speculator:
    """A speculator for the model as it is now; what was learned with this drafter goes on."""
    name = "none" if drafter is None else str(drafter)
    kept = _kept.setdefault(model, {})
    if name in kept and kept[name].fits(model):
        speculator = kept[name].around(model)
    else:
        folder = find_drafter(getattr(model, "name_or_path", ""), drafter)
        speculator = assemble(model, None, folder)
        kept[name] = Kept.of(speculator)
    speculator.target.positions.allow_any_length()  # as generate does
    return speculator
