"""The published files that a drafter was converted from, as far as ours do not say it.

Kept beside the weights, so that :mod:`specblock.integrations.export` can write the same files
again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.published_config import flat, named_layers, network_fields
from specblock.drafters.eagle3.published_weights import PublishedWeights
from specblock.errors import CheckpointError

__all__ = ["PublishedOrigin"]

_KEY = "published"


@dataclass(frozen=True)
class PublishedOrigin:
    """``config`` is the text of ``config.json``, ``names`` theirs by ours of every tensor used,
    ``dtypes`` those of the vocabulary maps, ``metadata`` the weights' header."""

    config: str
    names: dict[str, str]
    dtypes: dict[str, str]
    metadata: dict[str, str] | None

    @staticmethod
    def of_files(config: str, weights: PublishedWeights) -> PublishedOrigin:
        return PublishedOrigin(config, weights.theirs, weights.dtypes, weights.metadata)

    @staticmethod
    def of_extra(extra: dict[str, Any]) -> PublishedOrigin | None:
        """What :meth:`to_extra` stored; None where the drafter was not converted."""
        found = extra.get(_KEY)
        return None if found is None else PublishedOrigin(**found)

    def to_extra(self) -> dict[str, Any]:
        return {_KEY: asdict(self)}

    @property
    def layout(self) -> str:
        """``"speculators"``, or ``"eagle3"`` for the authors'."""
        return "speculators" if "speculators_model_type" in json.loads(self.config) else "eagle3"

    def describes(self, config: Eagle3Config) -> bool:
        """Whether the published config says what ours does: not after layers were overridden."""
        found = flat(json.loads(self.config))
        try:
            layers = named_layers(found, config.target_layers, len(config.feature_layers))
        except CheckpointError:
            return False
        # without a field, the head's rows tell the draft vocabulary
        rows = torch.empty(config.draft_vocab_size, 0)
        said = network_fields(found, dict.fromkeys(self.names, rows))
        ours = {name: getattr(config, name) for name in said}
        return layers == config.feature_layers and said == ours

    def restored(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """``tensors``, which have our names, under theirs and in their types."""
        found = {theirs: tensors[ours] for ours, theirs in self.names.items()}
        for name, dtype in self.dtypes.items():
            if name in found:
                found[name] = found[name].to(getattr(torch, dtype))
        return found
