"""What a training state holds, and whose it is: target, drafter, answers and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from specblock.drafters.config import StoredConfig
from specblock.drafters.fingerprint import target_digest
from specblock.errors import CheckpointError
from specblock.stored import Stored, differing
from specblock.training.data.answers import Answer
from specblock.training.loop.checkpoints import load_newest, load_state

# what states of before there was an origin do not say
ORIGIN = ("target", "drafter", "texts")
_ADVICE = "delete it, or the folder to start again, or name another with --out"
_DESCRIPTIVE = ("target_name", "tokenizer_fingerprint")  # of a drafter's config


class TrainingState(Stored):
    """A run between two steps; see :meth:`specblock.training.loop.trainer.Trainer.save`.

    ``identity``: what must be the same for a run to go on with it. ``version`` wrote it.
    """

    identity: dict[str, Any]
    model: dict[str, Tensor]
    names: list[str]
    optimiser: dict[str, Any]
    random: dict[str, Any]
    step: Annotated[int, Field(ge=0)]
    answer_tokens: Annotated[int, Field(ge=0)]
    elapsed: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    tables: dict[str, int] | None
    version: str | None = None


def version() -> str | None:
    """Of SpecBlock; None in a checkout that is not installed."""
    try:
        return metadata.version("specblock")
    except metadata.PackageNotFoundError:
        return None


def origin_of(
    target: nn.Module, drafter: StoredConfig, answers: Iterable[Answer]
) -> dict[str, Any]:
    """What a training is of, by content: names of folders and models say nothing."""
    digest = hashlib.sha256()
    for answer in answers:
        digest.update(json.dumps([answer.prompt_ids, answer.answer_ids, answer.stopped]).encode())
    config = {k: v for k, v in drafter.to_dict().items() if k not in _DESCRIPTIVE}
    found = target_digest(target), json.loads(json.dumps(config)), digest.hexdigest()
    return dict(zip(ORIGIN, found, strict=True))


def newest_state(folder: Path, report: Callable[[str], None]) -> tuple[Path, TrainingState] | None:
    """The newest whole state of a run, and its file; None where there is none.

    Raises:
        CheckpointError: all are damaged, or the newest is no training state.
    """
    found = load_newest(folder, report)
    if found is None:
        return None
    return found[0], TrainingState.of(found[1], found[0], _ADVICE)


def read_state(path: Path) -> TrainingState:
    """The state in a file. Raises :class:`CheckpointError` where there is none."""
    return TrainingState.of(load_state(path), path, _ADVICE)


def check_origin(folder: Path, origin: Mapping[str, Any], report: Callable[[str], None]) -> None:
    """Refuse to go on in ``folder`` with another target's training before anything is computed.

    Raises :class:`CheckpointError`.
    """
    found = newest_state(folder, report)
    if found is not None:
        theirs = {k: v for k, v in found[1].identity.items() if k in origin}
        check_identity(found[0], origin, theirs, report)


def check_identity(
    path: Path,
    mine: Mapping[str, Any],
    theirs: Mapping[str, Any],
    report: Callable[[str], None],
) -> None:
    """Refuse the state in ``path`` unless it is this run's.

    One that an earlier version wrote is taken without its origin: a training under way is not
    lost; ``report`` is told.

    Raises :class:`CheckpointError`.
    """
    changed, unsaid = differing(mine, theirs, ORIGIN)
    if changed:
        raise CheckpointError(
            f"{path} is another run's (other {', '.join(changed)}); give the same model, answers "
            f"and settings, or start from its drafter with --init in a new folder."
        )
    if unsaid:
        report(f"{path} does not say its {', '.join(unsaid)}: taken to be this run's")
