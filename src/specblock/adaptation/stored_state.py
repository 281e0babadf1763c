"""What the files of an adaptation hold, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from specblock.errors import ConfigError
from specblock.stored import Stored, differing

__all__ = ["ADVICE", "AdaptationState", "AdaptationStatus", "MemoryState", "check_identity"]

ADVICE = "give another folder with --adapt, or delete this one to begin again"


class Identity(Stored):
    """Of either kind of adaptation."""

    identity: dict[str, Any]


class AdaptationState(Stored):
    """See :func:`specblock.adaptation.state.save`."""

    identity: dict[str, Any]
    current: dict[str, Tensor]
    former: dict[str, Tensor]
    optimisers: dict[str, dict[str, Any]]
    bandit: dict[str, Any]
    ledger: dict[str, Any]
    costs: dict[str, float]
    signals: dict[str, Any]
    watch: dict[str, Any]
    journal: dict[str, Any]
    buffer: dict[str, int]
    gains: list[float]
    last_swap: list[Any] | None
    calibration: list[dict[str, Any]]
    memory: dict[str, Any] | None = None  # states of before there was one lack it
    original: dict[str, Tensor] | None = None  # of a drafter that came with nothing
    served: dict[str, Any] | None = None
    pays: bool | None = None
    candidate: dict[str, Tensor] | None = None


class MemoryState(Stored):
    """Of an adaptation that remembers answers and learns nothing."""

    identity: dict[str, Any]
    memory: dict[str, Any] | None


class _Arm(Stored):
    pulls: int
    swaps: int
    gain: float
    seconds: float
    cost: float
    rollbacks: int
    errors: int


class _Buffer(Stored):
    records: int
    held_out: int
    bytes: int
    seen: int


class AdaptationStatus(Stored):
    """What is told of an adaptation."""

    arms: dict[str, _Arm]
    buffer: _Buffer
    skips: int
    decoded_seconds: float
    update_seconds: float
    saved_seconds: float
    accepted_length: float | None
    memory_tokens: int = 0
    delay_seconds: float | None = None  # those of before there were gaps lack it


def check_identity(path: Path, mine: Mapping[str, Any], values: Any) -> None:
    """Refuse a state of another target, drafter or rank; earlier versions do not say the target.

    Args:
        values: what was read from ``path``.

    Raises:
        ConfigError: it is another's. CheckpointError: it says nothing of the kind.
    """
    theirs = Identity.of(values, path, ADVICE).identity
    mine = {name: value for name, value in mine.items() if value is not None}
    theirs = {name: value for name, value in theirs.items() if name in mine or name != "target"}
    changed, _ = differing(mine, theirs, ("target",))
    if changed:
        raise ConfigError(
            f"{path} belongs to another model or drafter (other {', '.join(changed)}): give "
            "another folder with --adapt, or the model and drafter that it began with."
        )
