"""Models converted once into a transformers folder in the cache: by one process, and whole.

A conversion happens in a temporary folder that is renamed into place when it is whole; its
manifest, written last, tells a whole folder from a damaged one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from specblock.errors import ModelError
from specblock.storage import cache_folder, explain_disk_errors, fsync_path

__all__ = ["Conversion", "is_intact", "prepare", "require_space", "sha256_of"]

logger = logging.getLogger(__name__)

MANIFEST = "specblock-manifest.json"
FORMAT = 1  # raised when the conversion changes, so that older folders are converted again
LOCK_SECONDS = 600  # that another conversion of the same file is waited for


@dataclass(frozen=True)
class Conversion:
    """A source and how to write it as a transformers folder.

    ``convert`` gets an existing, empty folder; what it raises reaches the user, so it raises
    :class:`ModelError`.
    """

    name: str  # as the user knows it; also the beginning of the folder's name
    sha256: str  # of the source, hexadecimal
    convert: Callable[[Path], None]


def prepare(source: Conversion, cache_dir: str | Path | None = None) -> Path:
    """The folder with the converted model, converting it first where need be.

    Raises:
        ModelError: the source is missing or damaged, or another process holds the lock too long.
        SpecBlockError: the disk is full or the cache folder cannot be written.
    """
    models = cache_folder(cache_dir) / "models"
    folder = models / f"{source.name}-{source.sha256[:12]}"
    if is_intact(folder, source.sha256):
        return folder
    with explain_disk_errors(models):
        models.mkdir(parents=True, exist_ok=True)
        lock = FileLock(models / f"{folder.name}.lock")
        try:
            with lock.acquire(timeout=LOCK_SECONDS):
                # another process may have done it meanwhile
                if not is_intact(folder, source.sha256):
                    _convert_into(source, folder)
        except Timeout:
            raise ModelError(
                f"Another process has been preparing {source.name} for more than "
                f"{LOCK_SECONDS // 60} minutes: end it, or remove {lock.lock_file}."
            ) from None
    return folder


def is_intact(folder: Path, sha256: str) -> bool:
    """Whether ``folder`` holds the whole conversion of the source of this digest, byte for byte.

    A file whose size and modification time are those of the manifest is taken as unchanged; one
    with another time (a copied or damaged cache) is read and compared by hash.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["format"], manifest["source"]) != (FORMAT, sha256):
            return False
        for name, known in manifest["files"].items():
            status = (folder / name).stat()
            if status.st_size != known["size"]:
                return False
            changed = status.st_mtime_ns != known["mtime_ns"]
            if changed and sha256_of(folder / name) != known["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def require_space(folder: Path, size: int) -> None:
    """Raise the system's own error for a full disk unless ``size`` bytes fit into ``folder``."""
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_into(source: Conversion, folder: Path) -> None:
    """Convert under the lock; whatever happens, no partial folder stays."""
    # The lock is ours, so any temporary folder is what a killed process left behind.
    for stale in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    if folder.exists():
        logger.warning("The cached %s is damaged; it is converted again.", source.name)
        _discard(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.tmp-"))
    try:
        with _announced(f"Preparing {source.name} (once)"):
            source.convert(temporary)
            _seal(temporary, source)
            os.replace(temporary, folder)
            fsync_path(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _seal(folder: Path, source: Conversion) -> None:
    """Force every file to the disk, then write the manifest that says the folder is whole."""
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        fsync_path(path)
        status = path.stat()
        files[path.name] = {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": sha256_of(path),
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
