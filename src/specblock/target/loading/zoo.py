"""Loading a target model by name, folder or hub id, with every failure said in one sentence."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specblock.errors import ModelError
from specblock.storage import explain_disk_errors
from specblock.target.loading.converted import prepare
from specblock.target.loading.embedded import SMOLLM2, EmbeddedModel, conversion_of, find_gguf
from specblock.target.loading.quiet import quiet_transformers
from specblock.target.loading.sentences import first_sentence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DEFAULT_MODEL", "check_placement", "load_model", "load_tokenizer", "locate_model"]

logger = logging.getLogger(__name__)

DEFAULT_MODEL = SMOLLM2.name
EMBEDDED = {SMOLLM2.name: SMOLLM2}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_SECONDS = (
    5.0  # one question to the hub before any download, instead of half a minute of retries
)
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # never a pickle


def load_model(
    name_or_path: str | Path = DEFAULT_MODEL,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    cache_dir: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder-only causal LM and its tokenizer, ready for inference.

    Args:
        name_or_path: an embedded name (``smollm2-135m-instruct``), a folder in transformers'
            layout with safetensors weights, a GGUF file or a folder with one (converted once into
            ``cache_dir``), or a hub id. A model in the hub's local cache is taken from there
            without asking the network.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the checkpoint's own.
        device: a torch device.
        cache_dir: where SpecBlock keeps converted models, instead of the user's cache folder.

    Returns:
        The model in evaluation mode without gradients, and the tokenizer.

    Raises:
        ModelError: no such model, no network, a damaged file, an unknown dtype or device.
        SpecBlockError: the disk is full.
    """
    torch_dtype = _dtype(dtype)
    torch_device = _device(device)
    folder = locate_model(str(name_or_path), cache_dir)
    return _load_folder(folder, str(name_or_path), torch_dtype, torch_device)


def check_placement(dtype: str | torch.dtype, device: str | torch.device) -> None:
    """Raise :class:`ModelError` for a dtype or a device that :func:`load_model` would refuse."""
    _dtype(dtype)
    _device(device)


def locate_model(name: str, cache_dir: str | Path | None = None) -> Path:
    """The local folder of a model, fetched or converted first where need be.

    Arguments and errors as in :func:`load_model`.
    """
    source = EMBEDDED.get(name.lower())
    if source is not None:
        return prepare(conversion_of(source), cache_dir)
    path = Path(name).expanduser()
    if path.exists():
        return path if (path / "config.json").is_file() else _from_gguf(path, cache_dir)
    if name.lower().endswith(".gguf") or name.startswith((".", "/", "~")):
        raise ModelError(f"There is no file or folder {name}: check the path.")
    if not HUB_ID.fullmatch(name):
        raise ModelError(
            f"There is no folder {name}, and it is not a model id either: give an existing folder, "
            f"an id such as {SMOLLM2.hub_id}, or '{DEFAULT_MODEL}'."
        )
    twin = next((item for item in EMBEDDED.values() if item.hub_id.lower() == name.lower()), None)
    try:
        return _from_hub(name)
    except _NoNetwork:
        if twin is not None and _installed(twin):
            logger.warning("No network: %s is taken from the package %s.", name, twin.distribution)
            return prepare(conversion_of(twin), cache_dir)
        raise


def _from_gguf(path: Path, cache_dir: str | Path | None) -> Path:
    """The converted folder of a GGUF file, or of the only one in a folder."""
    from specblock.target.loading import gguf

    if not path.is_dir():
        return prepare(gguf.conversion_of(path, cache_dir), cache_dir)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if not files:
        raise ModelError(f"{path} is not a model folder: it has no config.json and no GGUF file.")
    if len(files) > 1:
        raise ModelError(f"{path} holds {len(files)} GGUF files: name one, such as {files[0]}.")
    return prepare(gguf.conversion_of(files[0], cache_dir), cache_dir)


class _NoNetwork(ModelError):
    """The hub cannot be reached."""


def _installed(source: EmbeddedModel) -> bool:
    try:
        find_gguf(source)
    except ModelError:
        return False
    return True


def _from_hub(name: str) -> Path:
    """The hub's local copy of a model; downloads it when it is not there yet or not whole."""
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
        if _looks_whole(folder):
            return folder
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError:
        raise ModelError(f"'{name}' is not a valid model id.") from None
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
        with explain_disk_errors(Path("the model cache")):
            folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except errors.GatedRepoError:
        raise ModelError(
            f"{name} asks for its licence to be accepted: do so on its page, then 'hf auth login'."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"There is no model {name} on the hub and no folder of that name: check the spelling "
            f"(or log in with 'hf auth login' if it is private)."
        ) from None
    except (errors.HTTPError, OSError) as error:
        raise _NoNetwork(
            f"{name} is not on this machine and the hub cannot be reached: connect to the network, "
            f"give the folder of a model, or use '{DEFAULT_MODEL}'."
        ) from error
    if not _looks_whole(folder):
        raise ModelError(f"{name} has no safetensors weights; SpecBlock loads no others.")
    return folder


def _looks_whole(folder: Path) -> bool:
    """Whether a snapshot has a config and all the weight files that its index names."""
    import json

    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    return any(folder.glob("*.safetensors"))


def load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder; ``name`` is what the user called the model.

    Raises:
        ModelError: it is missing or damaged.
    """
    from transformers import AutoTokenizer

    with quiet_transformers(), _explained(name):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _load_folder(
    folder: Path, name: str, dtype: torch.dtype | str, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder, name)
    with quiet_transformers(), _explained(name):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{name} cannot be used: its files lack {len(missing)} weights, first {missing[0]}."
        )
    try:
        model = model.to(device)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{name} does not fit into the memory of {device}: try dtype bfloat16 or device cpu."
        ) from None
    return model.eval().requires_grad_(False), tokenizer


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Whatever transformers raises over a folder that is no good, as one sentence."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    own = (SafetensorError, StrictDataclassError)
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, ImportError, RuntimeError, *own) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise ModelError(f"There is not enough memory to load {name}.") from error
        raise ModelError(f"{name} cannot be loaded: {first_sentence(error)}") from error


def _dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if known not in DTYPES.values():
        raise ModelError(f"dtype must be one of {', '.join(DTYPES)}, not '{dtype}'.")
    return known


def _device(device: str | torch.device) -> torch.device:
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError):  # torch asserts when it was built without CUDA
        raise ModelError(
            f"The device '{device}' is not available here: use cpu, or check the driver."
        ) from None
    return chosen
