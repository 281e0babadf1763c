"""What a long run has measured so far, one line a prompt, so that it can go on after a stop."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specblock.bench.suites.prompts import BenchPrompt
from specblock.errors import ConfigError
from specblock.storage import explain_disk_errors, write_atomically

__all__ = ["Journal", "digest_of"]


def digest_of(prompts: Sequence[BenchPrompt]) -> str:
    """A short name of a list of prompts: the same texts in the same order."""
    texts = json.dumps([[p.id, p.task, list(p.lead), list(p.turns)] for p in prompts])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


class Journal:
    """A JSONL file beside the report: a header with the run's settings, then a line a prompt.

    A line is written in one piece and forced to the disk; one that a crash cut short is dropped.

    Args:
        path: of the report, whose name gets ``.journal.jsonl`` behind it.
        header: settings that have to be the same for a run to go on (JSON values).
        kept: what the first run fixed and later ones take over, such as measured costs.
    """

    def __init__(
        self, path: str | Path, header: Mapping[str, Any], kept: Mapping[str, Any] | None = None
    ):
        self.path = journal_path(path)
        self._header, self._kept = json.loads(json.dumps(header)), dict(kept or {})

    def start(self) -> None:
        """Begin anew; what an earlier run left is gone."""
        write_atomically(self.path, json.dumps({"header": self._header, "kept": self._kept}) + "\n")

    def resume(self) -> list[dict[str, Any]]:
        """The prompts that are done; begins anew where there is no journal.

        Raises:
            ConfigError: the journal is of a run with other settings.
        """
        lines = read_lines(self.path)
        if not lines:
            self.start()
            return []
        for name in self._header.keys() | lines[0].get("header", {}).keys():
            before, now = lines[0].get("header", {}).get(name), self._header.get(name)
            if before != now:
                raise ConfigError(
                    f"{self.path} is of a run with another {name} ({_short(before)}, now "
                    f"{_short(now)}); give the settings of that run, or leave --resume out."
                )
        # without the line that was cut short
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        return lines[1:]

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append one prompt's results."""
        with explain_disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def journal_path(report: str | Path) -> Path:
    """The journal of a report."""
    return Path(report).with_name(Path(report).name + ".journal.jsonl")


def kept_by(report: str | Path) -> dict[str, Any]:
    """What the run behind a report's journal fixed; empty where there is no journal."""
    lines = read_lines(journal_path(report))
    return lines[0].get("kept", {}) if lines else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; none where there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
