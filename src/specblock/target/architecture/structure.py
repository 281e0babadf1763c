"""Where a causal LM keeps its decoder layers, whatever they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from specblock.errors import ModelError


def text_config(model: nn.Module):
    """The configuration of the text decoder (multimodal models nest it)."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def cache_argument(function: Callable) -> str | None:
    """The name of the argument that takes a cache; transformers 5.24 gave it another."""
    asked = inspect.signature(function).parameters
    return next((name for name in ("cache", "past_key_values") if name in asked), None)


def forward_of(model: nn.Module) -> Callable:
    """The forward that names what it takes: a wrapper, as adapter libraries put around a model,
    hands everything on."""
    within = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    return next(within, model).forward


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal LM, in order.

    They are the outermost list of as many modules as the configuration counts layers, whether the
    model calls it ``layers``, ``h`` or otherwise. The decoder that the model names is asked first.

    Raises :class:`ModelError` where there is no such list.
    """
    count = getattr(text_config(model), "num_hidden_layers", 0)
    named = model.get_decoder() if hasattr(model, "get_decoder") else model
    for part in (named, model):
        lists = [
            (name.count("."), module)
            for name, module in part.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == count
        ]
        if lists:
            return min(lists, key=lambda item: item[0])[1]
    raise ModelError(
        f"{type(model).__name__} keeps no list of its decoder layers, so their outputs cannot be "
        "read; docs/models.md lists the families that SpecBlock speeds up."
    )
