"""What decoder layers put out, collected while the model runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from specblock.errors import ModelError
from specblock.target.architecture.structure import decoder_layers


class FeatureTap:
    """Collects the outputs of named decoder layers of the forwards within it.

    A context manager: the hooks are on the model meanwhile. ``layers`` are 0-based indices i with
    the convention *output of decoder layer i*, which is ``hidden_states[i + 1]`` in transformers'
    numbering.
    """

    def __init__(self, model: nn.Module, layers: tuple[int, ...]):
        modules = decoder_layers(model)
        wrong = [i for i in layers if not 0 <= i < len(modules)]
        if wrong:
            raise ModelError(
                f"Feature layers {wrong} do not exist: the target has layers 0 to "
                f"{len(modules) - 1}. Use a drafter trained for this target."
            )
        self.layers = layers
        self._outputs: dict[int, Tensor] = {}
        self._hooks = [(modules[i], self._hook(i)) for i in sorted(set(layers))]
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> FeatureTap:
        self._handles += [layer.register_forward_hook(hook) for layer, hook in self._hooks]
        return self

    def __exit__(self, *_exception) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, index: int):
        def keep(_module, _inputs, output):
            states = output[0] if isinstance(output, tuple) else output
            # some models carry several streams of states; the first is the one that predicts
            self._outputs[index] = states[0] if states.dim() > 3 else states

        return keep

    def take(self) -> Tensor | None:
        """The features ``[batch, rows, F * H]`` of the last forward; None without layers."""
        if not self.layers:
            return None
        features = torch.cat([self._outputs[i] for i in self.layers], dim=-1)
        self._outputs.clear()
        return features
