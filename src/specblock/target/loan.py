"""A model is lent for a forward and given back as it was.

A target wants other kernels in a model's linear layers, another attention, evaluation mode and the
outputs of some layers. The model belongs to somebody else: who may train it, change its weights,
attach adapters, save or copy it between two of our forwards. So all of that is put on right before
a forward and taken off right after it; what is left of us in the model meanwhile is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from specblock.kernels.linear import RoutedLinear, router_of
from specblock.kernels.route_table import RouteTable

_FORWARD = "forward"  # the instance attribute that goes before the class's method


class Loan:
    """What one target puts on a model during a forward; a context manager.

    Args:
        model: the model, any ``PreTrainedModel``.
        tap: what collects the outputs of layers, see
            :class:`specblock.target.tap.FeatureTap`.
        attention: name of a registered attention, which takes the place of those in
            ``replaceable``; None leaves the model its own.
        routed: whether linear layers take routes.
    """

    def __init__(
        self,
        model: nn.Module,
        tap: AbstractContextManager,
        attention: str | None,
        replaceable: Sequence[str],
        routed: bool,
    ):
        self._model, self._tap, self._routed = model, tap, routed
        self.attention, self._replaceable = attention, replaceable
        self.table = RouteTable()
        self._undo: list[Callable[[], Any]] = []
        self._taken: list[dict[str, Any]] = []  # attributes of layers that have our forward
        self.look_again()

    def look_again(self) -> None:
        """Find the layers anew: adapters may have been attached or merged since."""
        self._modules = list(self._model.modules())
        layers = [module for module in self._modules if _is_ordinary(module)]
        pairs = [(layer, router_of(layer)) for layer in layers if self._routed]
        self._layers = [(vars(layer), router, router.forward) for layer, router in pairs]
        self.use(self.table)
        configs = {id(module.config): module.config for module in self._modules if _has(module)}
        self._configs = list(configs.values())

    @property
    def linears(self) -> list[RoutedLinear]:
        """The routes of the model's linear layers."""
        return [router for _, router, _ in self._layers]

    def use(self, table: RouteTable) -> None:
        """Let the linear layers take the routes of ``table``."""
        self.table = table
        for linear in self.linears:
            if linear.table is not table:
                linear.use(table)

    def confirm(self) -> None:
        """No copy of a weight is older than the weight, however it was changed."""
        for linear in self.linears:
            linear.follow()
            linear.confirm()

    def __enter__(self) -> None:
        for module in self._modules:
            if module.training:
                self._later(module, "training", True)
                module.training = False
        if self.attention is not None:
            for config in self._configs:
                used = config._attn_implementation
                if used in self._replaceable and used != self.attention:
                    self._later(config, "_attn_implementation", used)
                    config._attn_implementation = self.attention
        table, taken = self.table, self._taken
        for own, router, forward in self._layers:
            if _FORWARD in own:
                continue  # another forward has it at this moment, or somebody's wrapper
            if router.table is not table:
                router.use(table)  # another target of the model has routes of its own
            router.follow()
            own[_FORWARD] = forward
            taken.append(own)
        self._tap.__enter__()

    def __exit__(self, *exception) -> None:
        self._tap.__exit__(*exception)
        while self._taken:
            self._taken.pop().pop(_FORWARD, None)
        while self._undo:
            self._undo.pop()()

    def _later(self, thing: Any, name: str, value: Any) -> None:
        self._undo.append(lambda: setattr(thing, name, value))


def _is_ordinary(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer: not a subclass, nor wrapped by somebody."""
    return type(module) is nn.Linear and _FORWARD not in vars(module)


def _has(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation")
