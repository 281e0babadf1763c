"""The methods of a comparison around one model: the same weights and routes, only drafters differ.

Every linear layer of the target and of all drafters is routed once, for all together. Each method
with a measured budget gets its own cost table, measured in this process the same way; each drafter
starts from the survival model in its own folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from specblock.bench.measure.compiled import CompiledTarget
from specblock.bench.measure.contender import Contender
from specblock.bench.measure.meter import MeteredDrafter
from specblock.bench.measure.methods import COMPILED, LOOKUP, NODES, MethodSpec, resolve
from specblock.budget.costs import CostTable
from specblock.budget.survival_file import load_survival
from specblock.drafters.base import BudgetController, CopiesController, Drafter, FixedBudget
from specblock.drafters.lookup.copies import TextCopies
from specblock.drafters.lookup.propose import LookupDrafter
from specblock.drafters.registry import KINDS, make_drafter
from specblock.engine.loading import load_drafter
from specblock.engine.machine.calibrate import measured_routes
from specblock.engine.machine.exactness import give_up_unless_exact
from specblock.engine.machine.measure import measure_costs
from specblock.engine.speculator import Speculator
from specblock.errors import ConfigError
from specblock.kernels.linear import routed
from specblock.kernels.route_table import RouteTable
from specblock.target.model import Target

__all__ = ["Field", "Measured", "assemble_field"]

OnStep = Callable[[str], None]


@dataclass
class Measured:
    """What this machine was measured to take; ``""`` is the table of the target alone."""

    routes: RouteTable = field(default_factory=RouteTable)
    costs: dict[str, CostTable] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        costs = {name: table.to_dict() for name, table in self.costs.items()}
        return {"routes": self.routes.to_dict(), "costs": costs}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measured:
        costs = {name: CostTable.from_dict(table) for name, table in data["costs"].items()}
        return cls(RouteTable.from_dict(data["routes"]), costs)


@dataclass
class Field:
    """What :func:`assemble_field` makes.

    Attributes:
        judge: plain decoding over the shared model: it encodes prompts and judges divergences.
        contenders: by method.
        measured: what budgets were chosen from.
        about: the drafters and budgets, as JSON values.
    """

    judge: Speculator
    contenders: dict[str, Contender]
    measured: Measured
    about: dict[str, Any]


def assemble_field(
    network: nn.Module,
    tokenizer: Any,
    names: Sequence[str],
    folders: Mapping[str, Path],
    *,
    budget: str = "measured",
    blocks: int = 2,
    exact: bool | None = None,
    measured: Measured | None = None,
    on_step: OnStep = lambda step: None,
) -> Field:
    """Make every method named ready to answer.

    Args:
        network: the target model, loaded.
        names: methods out of :data:`specblock.bench.measure.methods.METHODS`.
        folders: weights by kind of drafter.
        budget: ``"fixed"`` gives every method the fixed budget.
        blocks: generations of blocks a round, for SpecBlock.
        exact: see :func:`specblock.load`; of plain decoding too, or nothing would be compared.
        measured: of an earlier run that goes on; measured anew where left out.
        on_step: is told what a long step is doing.

    Raises:
        ConfigError: an unknown method, one without weights, or one that cannot run here.
        CheckpointError: a drafter does not fit the model.
    """
    specs = _checked(names, folders, budget)
    drafters = _drafters(network, tokenizer, specs, folders, blocks)
    layers = dict.fromkeys(((), *(drafter.feature_layers for drafter in drafters.values())))
    targets = {tapped: Target(network, tapped, exact=exact, owned=True) for tapped in layers}
    plain = targets[()]
    wanted = [name for name in drafters if specs[name].measured and budget == "measured"]
    if measured is None:
        measured = _measure(targets, drafters, wanted, on_step)
    else:
        _use_routes(targets.values(), drafters, measured.routes)
        give_up_unless_exact([*targets.values()])
    contenders = {}
    for name, spec in specs.items():
        drafter = drafters.get(name)
        target = targets[drafter.feature_layers if drafter is not None else ()]
        if name == COMPILED:
            on_step("compiling the target's step")
            target = CompiledTarget(network, plain.exact, measured.routes)
        costs = measured.costs[name] if name in wanted else None
        speculator = _speculator(target, tokenizer, drafter, costs, spec, folders)
        contenders[name] = Contender(speculator)
    about = {name: _about(specs[name], drafters.get(name), name in wanted) for name in specs}
    return Field(Speculator(plain, tokenizer), contenders, measured, about)


def _checked(
    names: Sequence[str], folders: Mapping[str, Path], budget: str
) -> dict[str, MethodSpec]:
    """The methods, if everything named is there."""
    if budget not in ("measured", "fixed"):
        raise ConfigError(f"budget must be 'measured' or 'fixed', not {budget!r}.")
    specs = resolve(names)
    for name, spec in specs.items():
        if spec.kind is not None and spec.kind not in folders:
            raise ConfigError(
                f"The method '{name}' needs weights and none ship for this model: name a folder "
                f"with --drafter {spec.kind}=FOLDER, or leave the method out."
            )
    return specs


def _drafters(
    network: nn.Module,
    tokenizer: Any,
    specs: Mapping[str, MethodSpec],
    folders: Mapping[str, Path],
    blocks: int,
) -> dict[str, Drafter]:
    """Drafters by method; methods of one kind share its weights."""
    networks: dict[str, nn.Module] = {}
    drafters: dict[str, Drafter] = {}
    for name, spec in specs.items():
        if name == LOOKUP:
            drafters[name] = LookupDrafter()
        if spec.kind is None:
            continue
        if spec.kind not in networks:
            networks[spec.kind] = load_drafter(folders[spec.kind], network, tokenizer).model
        settings = dict(spec.settings)
        if "blocks" in KINDS[spec.kind].settings:
            settings["blocks"] = blocks
        drafters[name] = make_drafter(networks[spec.kind], **settings)
    return drafters


def _measure(
    targets: Mapping[tuple[int, ...], Target],
    drafters: Mapping[str, Drafter],
    wanted: Sequence[str],
    on_step: OnStep,
) -> Measured:
    plain = targets[()]
    routes = RouteTable()
    if plain.device.type == "cpu":
        on_step("matrix products")
        routes = measured_routes(plain.linears, _networks(drafters), plain.exact_linears)
    _use_routes(targets.values(), drafters, routes)
    give_up_unless_exact([*targets.values()])
    costs = {"": measure_costs(plain, None, on_step)}
    tables: dict[str, CostTable] = {}  # methods with the same drafter share what it costs
    for name in wanted:
        drafter = drafters[name]
        target, shape = targets[drafter.feature_layers], drafter.shape_name()
        if shape not in tables:
            tables[shape] = measure_costs(
                target, drafter, lambda step, name=name: on_step(f"{name}: {step}")
            )
        costs[name] = tables[shape]
    return Measured(routes, costs)


def _use_routes(
    targets: Iterable[Target], drafters: Mapping[str, Drafter], routes: RouteTable
) -> None:
    for target in targets:
        target.use_routes(routes)
    for network in _networks(drafters):
        for linear in routed(network):
            linear.use(routes)


def _networks(drafters: Mapping[str, Drafter]) -> list[nn.Module]:
    """The networks of all drafters that have one, each once."""
    return list({id(d.model): d.model for d in drafters.values() if hasattr(d, "model")}.values())


def _speculator(
    target: Target,
    tokenizer: Any,
    drafter: Drafter | None,
    costs: CostTable | None,
    spec: MethodSpec,
    folders: Mapping[str, Path],
) -> Speculator:
    """A method's loop; without a measured table it has the fixed budget."""
    if drafter is None:
        return Speculator(target, tokenizer)
    metered = MeteredDrafter(drafter)
    if costs is None:
        return Speculator(target, tokenizer, metered, FixedBudget(NODES))
    folder, copies = folders.get(spec.kind or ""), TextCopies() if spec.copies else None
    kind = CopiesController if isinstance(drafter, LookupDrafter) else BudgetController
    learned = None if folder is None else load_survival(folder)
    greedy, sampled = (kind(costs, model, heed_clock=True) for model in (learned, None))
    return Speculator(target, tokenizer, metered, greedy, costs, sampled, copies=copies)


def _about(spec: MethodSpec, drafter: Drafter | None, measured: bool) -> dict[str, Any]:
    """What a method is, for the readers of a report."""
    budget = None
    if drafter is not None:
        budget = "measured" if measured else f"{NODES} nodes"
    own = [] if not hasattr(drafter, "model") else list(drafter.model.parameters())
    return {
        "summary": spec.summary,
        "budget": budget,
        "drafter": None if drafter is None else drafter.shape_name(),
        "drafter_parameters": sum(parameter.numel() for parameter in own),
    }
