"""SpecBlock: any Hugging Face causal language model, faster, with exactly the same output."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "AdaptationConfig": "specblock.adaptation.config",
    "load": "specblock.engine.loading",
    "Speculator": "specblock.engine.speculator",
    "Generation": "specblock.engine.speculator",
    "Chunk": "specblock.engine.speculator",
    "GenerationStats": "specblock.engine.statistics",
    "GenerationConfig": "specblock.config",
    "SpecBlockError": "specblock.errors",
    "Drafter": "specblock.drafters.base",
    "custom_generate": "specblock.engine.doorway.hf",
    "from_pretrained": "specblock.drafters.fetch",
    "push_to_hub": "specblock.integrations.hub.push",
}

__all__ = [
    "AdaptationConfig",
    "Chunk",
    "Drafter",
    "Generation",
    "GenerationConfig",
    "GenerationStats",
    "SpecBlockError",
    "Speculator",
    "__version__",
    "custom_generate",
    "from_pretrained",
    "load",
    "push_to_hub",
]

if TYPE_CHECKING:
    from specblock.adaptation.config import AdaptationConfig
    from specblock.config import GenerationConfig
    from specblock.drafters.base import Drafter
    from specblock.drafters.fetch import from_pretrained
    from specblock.engine.doorway.hf import custom_generate
    from specblock.engine.loading import load
    from specblock.engine.speculator import Chunk, Generation, Speculator
    from specblock.engine.statistics import GenerationStats
    from specblock.errors import SpecBlockError
    from specblock.integrations.hub.push import push_to_hub


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import: only when something of theirs is wanted
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'specblock' has no attribute {name!r}")
