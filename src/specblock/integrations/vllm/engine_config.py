"""A folder of ours as vLLM's configuration of a draft model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from vllm.transformers_utils.config import HFConfigParser

from specblock.drafters.config import read_json
from specblock.drafters.registry import read_config
from specblock.drafters.specblock.config import SpecBlockConfig
from specblock.errors import CheckpointError
from specblock.integrations.vllm.versions import check_version

__all__ = ["ARCHITECTURE", "FOLDER", "FolderParser"]

# vLLM prefixes names of this method's architectures that do not begin so.
ARCHITECTURE = "Eagle3SpecBlock"
FOLDER = "specblock_folder"  # the field that says where the drafter is


class SpecBlockEngineConfig(PreTrainedConfig):
    """What vLLM has to know: the shape of the drafter's cache and the layers of its features."""

    model_type = "specblock"


class FolderParser(HFConfigParser):
    """transformers' configs as before; and those of our folders, which have none of its fields."""

    def parse(self, model: str | Path, *args: Any, **kwargs: Any) -> tuple[dict, PreTrainedConfig]:
        folder = Path(model)
        if not (folder / "config.json").is_file() or "drafter_type" not in read_json(folder):
            return super().parse(model, *args, **kwargs)
        check_version()
        config = engine_config(folder)
        return config.to_dict(), config


def engine_config(folder: Path) -> SpecBlockEngineConfig:
    """Raises :class:`CheckpointError` for a drafter that is none of SpecBlock's network."""
    config = read_config(folder)
    if not isinstance(config, SpecBlockConfig):
        raise CheckpointError(
            f"{folder} holds a drafter of type {config.drafter_type!r}: vLLM loads EAGLE-3 from "
            "`specblock export --format speculators`."
        )
    return SpecBlockEngineConfig(
        architectures=[ARCHITECTURE],
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        num_hidden_layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        # rotary angles are computed, so that the target's length counts
        max_position_embeddings=2**20,
        # vLLM counts what enters a layer
        eagle_aux_hidden_state_layer_ids=[layer + 1 for layer in config.feature_layers],
        **{FOLDER: str(folder.resolve())},
    )
