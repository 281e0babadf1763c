"""What a stage has found so far: on the disk after every item, failures too, and gone on with."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from specblock.bench.environment import describe_environment
from specblock.errors import ConfigError
from specblock.own import Own
from specblock.storage import write_atomically

__all__ = ["Record"]

_log = logging.getLogger("specblock")


class Record:
    """The items of one stage, in a JSON file.

    Attributes:
        items: by name what was found, ``{"failed": ...}`` for what raised.
        lost: what raised in an earlier run; it has another try.
        complete: every item had its turn, now or in an earlier run.

    Raises :class:`ConfigError` where the file is of the rehearsal and this is none, or the reverse.
    """

    def __init__(self, stage: str, folder: Path, *, rehearsal: bool = False):
        self.stage, self.folder, self.path = stage, folder, folder / f"{stage}.json"
        self.items: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.rehearsal, self.complete, self.lost = rehearsal, False, list[str]()
        if self.path.exists():
            before = json.loads(self.path.read_text(encoding="utf-8"))
            if before.get("rehearsal", rehearsal) != rehearsal:
                raise ConfigError(
                    f"{self.path} is of {'a run' if rehearsal else 'a rehearsal'}: name another "
                    "folder with --out."
                )
            self.complete = before["complete"]
            failed = [name for name, item in before["items"].items() if "failed" in item]
            self.lost = failed
            self.items = {n: i for n, i in before["items"].items() if n not in failed}
            self.seconds = {n: s for n, s in before["seconds"].items() if n not in failed}

    @cached_property
    def _environment(self) -> dict[str, Any]:
        return describe_environment()

    def item(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``work`` finds, unless it was found before; what it raises is kept, and the stage
        goes on."""
        if name in self.items:
            return self.items[name]
        _log.info("%s: %s ...", self.stage, name)
        began = time.perf_counter()
        found: dict[str, Any] = {}
        with Own() as own:
            found = work()
        if own.error is not None:
            _log.warning("%s: %s failed: %s", self.stage, name, own.error, exc_info=own.error)
            found = {
                "failed": f"{type(own.error).__name__}: {own.error}",
                "where": traceback.format_exception(own.error)[-4:],
            }
        self.items[name] = found
        self.seconds[name] = round(time.perf_counter() - began, 3)
        self.save()
        return found

    def finish(self) -> None:
        """Every item had its turn."""
        self.complete = True
        self.save()

    def save(self) -> None:
        document = {
            "stage": self.stage,
            "rehearsal": self.rehearsal,
            "complete": self.complete,
            "environment": self._environment,
            "seconds": self.seconds,
            "items": self.items,
        }
        write_atomically(self.path, json.dumps(document, indent=1) + "\n")
