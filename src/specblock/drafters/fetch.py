"""Drafters from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from specblock.errors import CheckpointError

__all__ = ["FILES", "from_pretrained", "is_hub_id"]

# All that makes a drafter's folder; never a pickle.
FILES = ("config.json", "model.safetensors", "survival.json", "provenance.json", "README.md")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a name can be meant as ``owner/repository``: no such folder, nor one to hold it."""
    path = Path(name)
    return bool(_HUB_ID.fullmatch(name)) and not path.exists() and not path.parent.exists()


def from_pretrained(
    repo_id: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The local folder of a drafter on the hub, downloaded where it is not there yet.

    ``cache_dir`` is the hub's cache, its usual place if left out.

    Raises:
        CheckpointError: there is no such repository, no drafter in it, or no network.
    """
    from huggingface_hub import errors, snapshot_download

    arguments = {"revision": revision, "cache_dir": cache_dir, "allow_patterns": list(FILES)}
    try:
        folder = Path(snapshot_download(repo_id, **arguments))
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"There is no drafter {repo_id} on the hub and no folder of that name: check the "
            "spelling (or log in with 'hf auth login' if it is private)."
        ) from None
    except (errors.HTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"The drafter {repo_id} is not on this machine and the hub cannot be reached: connect "
            "to the network, or give a folder."
        ) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{repo_id} holds no drafter: config.json is missing.")
    return folder
