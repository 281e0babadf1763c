"""An EAGLE-3 drafter of ours in a layout that other engines load without flags."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from specblock.drafters.checkpoint import CONFIG, HEAD, WEIGHTS, read_extra, read_stored
from specblock.drafters.eagle3.config import Eagle3Config
from specblock.drafters.eagle3.network import Eagle3Model
from specblock.drafters.eagle3.origin import PublishedOrigin
from specblock.drafters.registry import read_config
from specblock.drafters.vocabulary import check_vocabulary_map
from specblock.errors import CheckpointError, ConfigError
from specblock.integrations.export.configs import authors_config, speculators_config
from specblock.integrations.export.obstacles import LAYOUTS, limits, refuse_unknown
from specblock.integrations.export.target_facts import read_target
from specblock.storage import atomic_file, write_atomically

__all__ = ["export_eagle3"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SPECULATORS = {"midlayer.": "layers.0.", "feature_norms.": "fc_norm."}


def export_eagle3(
    folder: str | Path,
    out: str | Path,
    *,
    layout: str,
    target: str | None = None,
    dtype: str = "bfloat16",
) -> list[str]:
    """Write the drafter in ``folder`` to ``out`` in an engine's layout.

    A drafter that was converted from the same layout gets back the files that it came from: the
    config to the byte, every tensor under its old name, in its old type.

    Args:
        layout: ``"eagle3"``, the authors', or ``"speculators"``.
        target: name, folder or hub id; None takes the one that the drafter names.
        dtype: of the weights: float32, bfloat16 or float16.

    Returns:
        Sentences on engines that load the result with a limit.

    Raises:
        ConfigError: an unknown layout or dtype, or no target.
        CheckpointError: the drafter is of another kind, damaged, does not fit the target, or has
            an option that the layout cannot say.
        SpecBlockError: the disk is full or ``out`` cannot be written.
    """
    folder, out = Path(folder), Path(out)
    _check_choices(folder, out, layout, dtype)
    found = read_config(folder)
    if not isinstance(found, Eagle3Config):
        raise CheckpointError(
            f"{folder} holds a drafter of type {found.drafter_type!r}; engines load EAGLE-3 alone "
            "(`specblock train --kind eagle3 --for-engines`). For transformers and vLLM with the "
            "package specblock installed, see docs/engines.md."
        )
    config, tensors = read_stored(folder, Eagle3Config, Eagle3Model)
    check_vocabulary_map(tensors["d2t"], tensors["t2d"], folder / WEIGHTS)
    origin = PublishedOrigin.of_extra(read_extra(folder))
    if origin is not None and origin.layout == layout and origin.describes(config):
        _write(out, origin.config, origin.restored(tensors), origin.metadata)
        return limits(config, layout)
    refuse_unknown(config, layout)
    facts = read_target(config, target)
    if config.target_lm_head:
        tensors[HEAD] = facts.head[tensors["t2d"]]
    described = authors_config if layout == "eagle3" else speculators_config
    text = json.dumps(described(config, facts, dtype), indent=2) + "\n"
    _write(out, text, _named(tensors, layout, DTYPES[dtype]), {"format": "pt"})
    return limits(config, layout)


def _check_choices(folder: Path, out: Path, layout: str, dtype: str) -> None:
    if layout not in LAYOUTS:
        raise ConfigError(f"The layout must be one of {', '.join(LAYOUTS)}, not {layout!r}.")
    if dtype not in DTYPES:
        raise ConfigError(f"The dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    if out.resolve() == folder.resolve():
        raise ConfigError(f"Exporting in place would overwrite {folder / CONFIG}; name another "
                          "folder.")  # fmt: skip


def _named(tensors: dict[str, Tensor], layout: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Under the layout's names, in ``dtype`` but for the vocabulary maps."""
    found = {}
    for name, tensor in tensors.items():
        if layout == "speculators":
            for ours, theirs in _SPECULATORS.items():
                if name.startswith(ours):
                    name = theirs + name.removeprefix(ours)
        found[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return found


def _write(
    out: Path, config: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None
) -> None:
    with atomic_file(out / WEIGHTS) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata=metadata,
        )
        temporary.chmod(0o644)
    write_atomically(out / CONFIG, config)
