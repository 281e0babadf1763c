"""GGUF files as targets: transformers reads the weights, we hold it to what the file says."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specblock.errors import ModelError
from specblock.storage import cache_folder, write_atomically
from specblock.target.loading.converted import Conversion, require_space, sha256_of
from specblock.target.loading.gguf_config import READABLE, faithful_config
from specblock.target.loading.gguf_file import GgufFile, read_gguf
from specblock.target.loading.quiet import quiet_transformers
from specblock.target.loading.sentences import first_sentence

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["conversion_of", "convert_gguf"]

logger = logging.getLogger(__name__)

DIGESTS = "gguf-digests.json"
TOKENIZER_BYTES = 64 * 2**20  # room for what is written beside the weights
# ways of splitting text into words that transformers' reader knows (`tokenizer.ggml.pre`)
KNOWN_SPLITS = frozenset(("llama-bpe", "llama3", "qwen2", "gpt-2", "tekken", "default", ""))


def conversion_of(path: Path, cache_dir: str | Path | None = None) -> Conversion:
    """How to make a GGUF file's folder, which is kept under the digest of the file's content.

    Raises:
        ModelError: the file cannot be read.
    """
    name = re.sub(r"[^\w.-]+", "-", path.stem)
    return Conversion(name, _digest(path, cache_dir), partial(convert_gguf, path, name=str(path)))


def _digest(path: Path, cache_dir: str | Path | None) -> str:
    """The SHA-256 of a file, remembered for as long as its size and time of change stay."""
    memory = cache_folder(cache_dir) / "models" / DIGESTS
    known = _remembered(memory)
    try:
        status = path.stat()
        key, now = str(path.resolve()), [status.st_size, status.st_mtime_ns]
        if known.get(key, [])[:2] == now:
            return known[key][2]
        digest = sha256_of(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    write_atomically(memory, json.dumps({**known, key: [*now, digest]}, indent=1))
    return digest


def _remembered(memory: Path) -> dict[str, list]:
    """path -> [size, mtime in ns, digest] of files seen before; a damaged memory is none."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {path: kept for path, kept in entries if isinstance(kept, list) and len(kept) == 3}


def convert_gguf(path: Path, out: Path, *, name: str) -> None:
    """Write the model and tokenizer of a GGUF file as a float32 transformers folder.

    Args:
        path: the file, of an architecture in :data:`READABLE`.
        out: an existing, empty folder.
        name: what the config says the model is called.

    Raises:
        ModelError: the file is damaged, of an unknown kind, or says something that transformers
            cannot be told.
        OSError: the disk is full.
    """
    from transformers import AutoConfig, AutoTokenizer

    file = read_gguf(path)
    if file.architecture not in READABLE:
        raise ModelError(
            f"{path} is of the architecture '{file.architecture}', which SpecBlock does not read "
            f"from GGUF (it reads {', '.join(sorted(READABLE))}): give the original model's "
            "folder or hub id."
        )
    require_space(out, 4 * file.elements + TOKENIZER_BYTES)
    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    # The reader's own bar ignores transformers' switch for bars; what goes wrong is raised anyway.
    with quiet_transformers(), redirect_stderr(io.StringIO()), _explained(path):
        config = faithful_config(file, AutoConfig.from_pretrained(**place, local_files_only=True))
        tokenizer = AutoTokenizer.from_pretrained(**place, local_files_only=True)
        model = _read_weights(file, config, name)
        _set_ends(file, model, tokenizer)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    split = str(file.values.get("tokenizer.ggml.pre", ""))
    if file.values.get("tokenizer.ggml.model") == "gpt2" and split not in KNOWN_SPLITS:
        logger.warning(
            "%s splits text in a way that transformers does not know ('%s'): a prompt's tokens may "
            "differ a little from the original tokenizer's.", path, split,
        )  # fmt: skip


def _read_weights(file: GgufFile, config: PretrainedConfig, name: str) -> PreTrainedModel:
    """The model of ``config`` with the file's weights, all of them and no others."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    # transformers' reader has no names for mistral's weights, which are llama's
    reading = config
    if config.model_type == "mistral":
        reading = LlamaConfig.from_dict({**config.to_dict(), "model_type": "llama"})
    read, info = AutoModelForCausalLM.from_pretrained(
        file.path.parent, gguf_file=file.path.name, config=reading, dtype=torch.float32,
        local_files_only=True, output_loading_info=True,
    )  # fmt: skip
    if info["missing_keys"]:
        raise ModelError(f"{file.path} lacks weights, {min(info['missing_keys'])} among them.")
    held = sum(parameter.numel() for parameter in read.parameters())
    if held != file.elements:
        raise ModelError(
            f"{file.path} cannot be used: it holds {file.elements:,} numbers, but transformers' "
            f"{config.model_type} has room for {held:,}."
        )
    # The model as read still says "quantised", which refuses saving although the weights are plain
    # by now: it is built anew, without a second copy of the weights.
    settings = {**config.to_dict(), "_name_or_path": name}
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(type(config).from_dict(settings))
    plain.load_state_dict(read.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    return plain


def _set_ends(file: GgufFile, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generation end where the file or its chat template ends an answer."""
    names = ("eos", "eot", "eom")
    ends = [file.values.get(f"tokenizer.ggml.{name}_token_id") for name in names]
    ends.append(_end_of_turn(tokenizer))
    ends = list(dict.fromkeys(int(end) for end in ends if end is not None))
    if ends:
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts behind an answer, if it puts one."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "qq"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, ValueError):  # a template for another kind of conversation
        return None
    behind = text.rpartition("qq")[2].lstrip()
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return ids[0] if ids and ids[0] in special else None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What transformers raises over a GGUF file as one sentence; a full disk as what it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        # safetensors reports what the system said about a write as text only
        if "os error 28" in str(error) or "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise ModelError(f"{path} cannot be converted: {first_sentence(error)}") from error
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "enough memory" in str(error):
            raise ModelError(f"There is not enough memory to convert {path}.") from error
        raise ModelError(f"{path} cannot be converted: {first_sentence(error)}") from error
