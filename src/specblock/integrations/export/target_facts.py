"""What an exported drafter's files say about its target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from specblock.drafters.config import StoredConfig
from specblock.drafters.fingerprint import check_fits, tokenizer_fingerprint
from specblock.errors import ConfigError
from specblock.target.loading.zoo import load_model, load_tokenizer, locate_model

__all__ = ["TargetFacts", "read_target"]


@dataclass(frozen=True)
class TargetFacts:
    """``folder`` on this machine and ``name`` as engines are to find it; ``config`` as a dict of
    the text model's; ``head [V, H]`` where it was asked for."""

    folder: Path
    name: str
    config: dict[str, Any]
    architectures: list[str]
    head: Tensor | None = None


def read_target(config: StoredConfig, target: str | None, *, head: bool = True) -> TargetFacts:
    """The target of a drafter: the one given, or else the one that its config names.

    ``head``: read the output head, where the drafter's is the target's.

    Raises:
        ConfigError: there is neither.
        CheckpointError: the drafter was made for another one.
        ModelError: it cannot be found or loaded.
    """
    name = target or config.target_name
    if not name:
        raise ConfigError("The drafter does not say what its target is; give --target.")
    from transformers import AutoConfig

    folder = locate_model(name)
    whole = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = whole.get_text_config()
    check_fits(
        config,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        target_layers=text.num_hidden_layers,
        fingerprint=tokenizer_fingerprint(load_tokenizer(folder, name)),
        target_name=name,
    )
    rows = None
    if head and config.target_lm_head:
        rows = load_model(folder, dtype="float32")[0].get_output_embeddings().weight.detach()
    # a name that only we know helps no engine; a hub id or a folder does
    known = name if name.count("/") == 1 and not Path(name).exists() else str(folder)
    return TargetFacts(folder, known, text.to_dict(), list(whole.architectures or []), rows)
