"""GGUF to safetensors, by transformers' own reader."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path

import torch

__all__ = ["convert_gguf"]


def convert_gguf(gguf: Path, out: Path, *, name: str) -> None:
    """Write the model and tokenizer of a GGUF file as a float32 transformers folder.

    Args:
        gguf: the file, of an architecture that transformers' GGUF reader knows.
        out: an existing, empty folder.
        name: what the config says the model is called.

    Raises:
        RuntimeError: the weights read do not fill the model that the config describes.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from specblock.target.quiet import quiet_transformers

    # The reader's own bar ignores transformers' switch for bars; what goes wrong is raised anyway.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        read = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
    # The reader's config still says "quantised", which refuses saving although the weights are
    # plain by now: the same class is built from the config without that entry.
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    settings["_name_or_path"] = name
    plain = type(read)(type(read.config).from_dict(settings)).to(torch.float32)
    plain.load_state_dict(read.state_dict(), strict=True)
    plain.generation_config = read.generation_config
    with quiet_transformers():
        plain.save_pretrained(out)
        tokenizer.save_pretrained(out)
