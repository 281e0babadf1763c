"""Where an output came from: versions, arguments, settings, hashes of the inputs, git commit."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from specblock.storage import write_atomically

PACKAGES = ("specblock", "torch", "transformers", "tokenizers", "accelerate", "safetensors")
GIT_SECONDS = 10


def provenance_path(out: Path, *, folder: bool) -> Path:
    """``provenance.json`` in an output folder, ``<out>.provenance.json`` beside a file."""
    return out / "provenance.json" if folder else out.with_name(f"{out.name}.provenance.json")


def earlier_runs(path: Path) -> list[dict[str, Any]]:
    """The runs that a provenance file tells of; none where it is missing or unreadable."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return runs if isinstance(runs, list) else []


@contextmanager
def recorded(
    out: Path, verb: str, settings: dict[str, Any], inputs: Iterable[Path], *, folder: bool = False
) -> Iterator[dict[str, Any]]:
    """Append this run to the provenance file of ``out``: when it starts, and when it ends.

    A run that was killed stays ``running`` in the file; resumed outputs have several runs. A run
    that failed before there was any output leaves nothing behind. What the caller puts into the
    record given to it (counts, figures) is written at the end.

    Raises:
        SpecBlockError: the disk is full.
    """
    path, existed = provenance_path(out, folder=folder), out.exists()
    before = earlier_runs(path)
    run: dict[str, Any] = {
        "verb": verb,
        "status": "running",
        "started": _now(),
        "ended": None,
        "argv": sys.argv,
        "settings": settings,
        "inputs": [row for given in inputs for row in described(given)],
        "versions": versions(),
        "git": git_commit(),
        "machine": {
            "name": platform.node(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
        },
    }

    def write() -> None:
        write_atomically(path, json.dumps({"runs": [*before, run]}, indent=2, default=str) + "\n")

    write()
    try:
        yield run
    except BaseException as error:
        run["status"], run["ended"] = f"ended by {type(error).__name__}", _now()
        if existed or _has_output(out, path):
            write()
        else:
            _forget(path)
        raise
    run["status"], run["ended"] = "finished", _now()
    write()


def _has_output(out: Path, path: Path) -> bool:
    return any(file != path for file in out.iterdir()) if out.is_dir() else out.exists()


def _forget(path: Path) -> None:
    """Take back the record of a run that brought nothing, and the folder made for it."""
    path.unlink(missing_ok=True)
    if path.name == "provenance.json":
        with suppress(OSError):  # somebody else's file may have come in meanwhile
            path.parent.rmdir()


def described(path: Path) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of a file, or of every file in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    rows = []
    for file in files:
        if file.is_file() and not file.name.startswith("."):
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            rows.append({"path": str(file), "bytes": file.stat().st_size, "sha256": digest})
    return rows


def versions() -> dict[str, str | None]:
    """Versions of Python, of SpecBlock and of the packages that figures depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> dict[str, Any] | None:
    """Commit of the checkout that this code runs from, and whether it was changed; or None."""
    package = Path(__file__).resolve().parent.parent
    root = package.parent.parent
    if package != root / "src" / "specblock" or not (root / ".git").exists():
        return None  # installed somewhere: a commit found there would be another project's
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(root, "status", "--porcelain", "--", "src")
    return {"commit": commit, "changed": bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
