"""SpecBlock: any Hugging Face causal language model, faster, with exactly the same output."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from specblock.api import *  # noqa: F403

# without the library behind them: torch and transformers take seconds to import
_LIGHT = {"GenerationConfig": "specblock.config", "SpecBlockError": "specblock.errors"}
_NAMES = (
    "AdaptationConfig",
    "Chunk",
    "Drafter",
    "Generation",
    "GenerationStats",
    "Speculator",
    "custom_generate",
    "from_pretrained",
    "load",
    "push_to_hub",
)

__all__ = [*_LIGHT, *_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _NAMES or name in _LIGHT:
        return getattr(import_module(_LIGHT.get(name, "specblock.api")), name)
    raise AttributeError(f"module 'specblock' has no attribute {name!r}")
