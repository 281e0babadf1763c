"""Which drafter a name means."""

from __future__ import annotations

import logging
from functools import cache
from importlib import resources
from pathlib import Path

from specblock.config import DEFAULT_MODEL
from specblock.drafters.fetch import from_pretrained, is_hub_id
from specblock.errors import ConfigError

__all__ = ["DAY0", "DEFAULT_MODEL", "LOOKUP", "find_drafter", "shipped_drafter"]

LOOKUP, DAY0 = "lookup", "day0"
_log = logging.getLogger("specblock")


def find_drafter(
    model: str, drafter: str | Path | None, *, adapts: bool = False
) -> Path | str | None:
    """The folder of the drafter asked for, ``LOOKUP`` or ``DAY0``; None for plain decoding.

    Args:
        drafter: a drafter's folder or hub id; ``"lookup"`` drafts from the text so far alone, for
            any model; ``"day0"`` does so until what was served has made a drafter; ``"auto"`` takes
            the one that ships for the embedded model and for others ``"day0"`` if it may adapt,
            else ``"lookup"``; None decodes plainly.
        adapts: whether it may.
    """
    name = None if drafter is None else str(drafter).lower()
    if name in (None, "none"):
        return None
    if name == DAY0 and not adapts:
        raise ConfigError(
            "A day-0 drafter learns from what it serves: name a folder with --adapt for it."
        )
    if name in (LOOKUP, DAY0):
        return name
    if name == "":
        raise ConfigError("The drafter's name is empty: give a folder, 'auto', 'lookup' or 'none'.")
    if name != "auto":
        return from_pretrained(str(drafter)) if is_hub_id(str(drafter)) else Path(drafter)
    shipped = shipped_drafter(model)
    if shipped is None and not adapts:
        _say_lookup(model)
    return shipped or (DAY0 if adapts else LOOKUP)


def shipped_drafter(model: str) -> Path | None:
    """The folder of the drafter that comes with SpecBlock for ``model``, if there is one."""
    # the converted model's folder is the name with a digest behind it
    if not Path(model).name.lower().startswith(DEFAULT_MODEL):
        return None
    shipped = Path(str(resources.files("specblock") / "weights" / DEFAULT_MODEL))
    return shipped if (shipped / "config.json").is_file() else None


@cache
def _say_lookup(model: str) -> None:
    """Once a process and model: what "auto" means here."""
    _log.warning(
        "No drafter ships for %s: drafting from the text itself (--drafter lookup); "
        "docs/training.md says how to train one.", model or "this model",
    )  # fmt: skip
