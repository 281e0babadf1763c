"""One model, many drafters: a target whose hooks are on the model only while it is in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from specblock.target.model import FeatureTap, Target

__all__ = ["SharedTarget"]


class SharedTarget(Target):
    """A target among others of the same model, each with the feature layers of its drafter.

    The weights and their routes are the model's, so they are shared. The hooks that read features
    would be paid for by every other method, so they come and go; the hooks of a new target are off.
    """

    def __init__(
        self,
        model: nn.Module,
        feature_layers: tuple[int, ...] = (),
        exact: bool | None = None,
    ):
        super().__init__(model, feature_layers, exact=exact)
        self._tap.remove()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The hooks are on within this."""
        self._tap = FeatureTap(self.model, self.feature_layers)
        try:
            yield
        finally:
            self._tap.remove()
