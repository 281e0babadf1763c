"""Prompt files for measuring: JSON Lines, plain or zstd."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import zstandard

from specblock.errors import SpecBlockError

__all__ = ["BenchPrompt", "Message", "load_prompts"]

Message = dict[str, str]


@dataclass(frozen=True)
class BenchPrompt:
    """A conversation to generate: ``lead`` comes before the first of the user ``turns``."""

    id: str
    task: str
    lead: tuple[Message, ...]
    turns: tuple[str, ...]

    @staticmethod
    def from_row(row: Any, default_id: str) -> BenchPrompt:
        """Read one row: ``messages`` that end in a user turn, ``turns`` (all user turns), or both.

        Raises:
            ValueError: the row has neither, or they are not what they should be.
        """
        if not isinstance(row, dict):
            raise ValueError("a row is an object")
        messages, turns = row.get("messages") or [], row.get("turns") or []
        if not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
            raise ValueError("every message has a role and a content")
        lead = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
        if messages and lead[-1]["role"] != "user":
            raise ValueError("messages end in a user turn")
        last = [lead.pop()["content"]] if lead else []
        # Where both are given, the message is the first of the turns.
        user_turns = tuple(str(turn) for turn in (turns or last))
        if not user_turns or not all(turn.strip() for turn in user_turns):
            raise ValueError("messages or turns hold at least one user text, none of them empty")
        return BenchPrompt(
            id=str(row.get("id", default_id)),
            task=str(row.get("task", "")),
            lead=tuple(lead),
            turns=user_turns,
        )


def load_prompts(path: str | Path, limit: int | None = None) -> list[BenchPrompt]:
    """The first ``limit`` prompts of a ``.jsonl`` or ``.jsonl.zst`` file; all without a limit.

    Raises:
        SpecBlockError: the file cannot be read, a row is broken (its line is named), or there is
            no prompt in it.
    """
    path = Path(path)
    prompts: list[BenchPrompt] = []
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and len(prompts) >= limit:
                break
            if not line.strip():
                continue
            try:
                prompts.append(BenchPrompt.from_row(json.loads(line), f"{path.name}:{number}"))
            except ValueError as error:
                raise SpecBlockError(f"{path}, line {number}, is no prompt: {error}.") from None
    if not prompts:
        raise SpecBlockError(f"{path} holds no prompts: give a JSONL file with one on each line.")
    return prompts


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("rb") as raw:
            if path.suffix == ".zst":
                with zstandard.ZstdDecompressor().stream_reader(raw) as unpacked:
                    yield io.TextIOWrapper(unpacked, encoding="utf-8")
            else:
                yield io.TextIOWrapper(raw, encoding="utf-8")
    except OSError as error:
        raise SpecBlockError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (UnicodeDecodeError, zstandard.ZstdError):
        raise SpecBlockError(f"{path} is not UTF-8 text (or not whole, if compressed).") from None
