"""A drafter to the hub; :mod:`specblock.drafters.fetch` is the way back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specblock.drafters.fetch import FILES
from specblock.drafters.registry import read_config
from specblock.errors import SpecBlockError
from specblock.integrations.hub.card import model_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["push_to_hub"]


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    target: str | None = None,
    licence: str | None = None,
    private: bool = False,
    api: HfApi | None = None,
) -> str:
    """Upload the drafter in ``folder`` with a generated model card; returns the card.

    A ``README.md`` in the folder is uploaded as it is. Checkpoints of the training stay here.

    Args:
        target, licence: see :func:`specblock.integrations.hub.card.model_card`.
        api: of another hub, or with another token.

    Raises:
        CheckpointError: there is no drafter in the folder.
        SpecBlockError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    folder, api = Path(folder), api or HfApi()
    read_config(folder)
    own = folder / "README.md"
    card = own.read_text("utf-8") if own.is_file() else model_card(folder, target, licence=licence)
    files = [folder / name for name in FILES if (folder / name).is_file() and name != own.name]
    operations = [CommitOperationAdd(file.name, str(file)) for file in files]
    operations.append(CommitOperationAdd(own.name, card.encode("utf-8")))
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message="A drafter of SpecBlock")
    except (HTTPError, HFValidationError, OSError) as error:
        raise SpecBlockError(
            f"{repo_id} cannot be written on the hub ({str(error).splitlines()[0]}): check the "
            "network and the name, and log in with 'hf auth login'."
        ) from error
    return card
