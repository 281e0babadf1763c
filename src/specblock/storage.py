"""Files that are either whole or absent: the cache folder, atomic writes, disk errors in words."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specblock.errors import SpecBlockError

__all__ = ["atomic_file", "cache_folder", "explain_disk_errors", "fsync_path", "write_atomically"]


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where converted models and measured costs are kept; not created here.

    ``cache_dir`` wins; otherwise the platform's standard place: ``$XDG_CACHE_HOME/specblock``,
    or ``~/.cache/specblock`` where that is unset or, as the standard asks, not absolute.
    """
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    standard = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = standard if standard.is_absolute() else Path.home() / ".cache"
    return base / "specblock"


def fsync_path(path: Path) -> None:
    """Force a file's or a folder's contents to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: str | Path, text: str) -> None:
    """Write a small UTF-8 file so that a reader sees the old text or the new, never a part.

    Raises:
        SpecBlockError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing ``path`` into one sentence.

    Raises:
        SpecBlockError: the disk is full, the quota is used up, or writing is not allowed.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpecBlockError(
                f"The disk is full at {path}: free some space, or choose another folder."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise SpecBlockError(
                f"{path} cannot be written ({error.strerror}): choose another folder."
            ) from error
        raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary sibling to write a large file into; it takes ``path``'s place on success.

    Raises:
        SpecBlockError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield temporary
            fsync_path(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
