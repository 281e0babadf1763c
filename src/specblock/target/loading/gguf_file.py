"""What a GGUF file says about itself, read by the ``gguf`` package and checked for wholeness."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specblock.errors import ModelError

__all__ = ["GgufFile", "read_gguf"]

MAGIC = b"GGUF"
LONGEST = 1024  # entries; longer arrays are vocabularies, of which the length alone is kept
BAD_FILE = (ValueError, KeyError, IndexError, TypeError, OverflowError, OSError)  # the reader's


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensor sizes of a GGUF file.

    ``values`` holds every entry by its name; of an array longer than 1024 its length.
    ``shapes`` gives every tensor's shape as transformers counts it, outermost first.
    ``rope`` holds the tensors that scale rotary frequencies, float32 [head_dim / 2].
    """

    path: Path
    values: dict[str, object]
    shapes: dict[str, tuple[int, ...]]
    rope: dict[str, np.ndarray]

    @property
    def architecture(self) -> str:
        return str(self.values["general.architecture"])

    @property
    def own(self) -> dict[str, object]:
        """The entries of this architecture, without its name in front."""
        prefix = self.architecture + "."
        return {k.removeprefix(prefix): v for k, v in self.values.items() if k.startswith(prefix)}

    @property
    def elements(self) -> int:
        """How many numbers the model's own tensors hold."""
        sizes = (np.prod(shape) for name, shape in self.shapes.items() if name not in self.rope)
        return int(sum(sizes))


def read_gguf(path: Path) -> GgufFile:
    """Read everything but the weights.

    Raises:
        ModelError: the file is none, is cut short, is a part of several, or holds no language
            model or no tokenizer.
    """
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"{path} is not a GGUF file.")
    try:
        reader = GGUFReader(path)
        values = {name: _content(field) for name, field in reader.fields.items()}
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except BAD_FILE as error:
        raise ModelError(
            f"{path} cannot be read: it is cut short or damaged, or of a kind that the installed "
            f"gguf package does not know ({type(error).__name__}); download it again, or "
            "'pip install --upgrade gguf'."
        ) from error
    if end > path.stat().st_size:
        raise ModelError(f"{path} is cut short: download it again.")
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    rope = {t.name: np.array(t.data) for t in reader.tensors if t.name.startswith("rope_f")}
    _check_kind(path, values, shapes)
    return GgufFile(path, values, shapes, rope)


def _content(field) -> object:
    return field.contents() if len(field.data) <= LONGEST else len(field.data)


def _check_kind(path: Path, values: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> None:
    if int(values.get("split.count", 1)) > 1:
        raise ModelError(
            f"{path} is one of {values['split.count']} parts of a model: join them with "
            "'llama-gguf-split --merge' and give the whole file."
        )
    if values.get("general.type", "model") != "model" or "token_embd.weight" not in shapes:
        kind = values.get("general.type", values.get("general.architecture", "unknown"))
        raise ModelError(f"{path} holds no language model (its kind is '{kind}').")
    if "tokenizer.ggml.tokens" not in values:
        raise ModelError(f"{path} holds no tokenizer, which SpecBlock needs.")
