"""One user at a time for an adaptation's folder."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from specblock.errors import ConfigError
from specblock.storage import explain_disk_errors

__all__ = ["hold"]


def hold(folder: Path) -> FileLock:
    """Let nobody else use ``folder`` until the lock is released, or the process has ended however.

    Raises:
        ConfigError: somebody does. SpecBlockError: the folder cannot be written.
    """
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # whichever thread closes the adaptation gives it back
        lock = FileLock(folder / ".lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"Another program adapts in {folder}: end it, or give another folder with --adapt."
            ) from None
    return lock
