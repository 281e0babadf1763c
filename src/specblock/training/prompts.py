"""Prompts: JSONL rows ``{"id", "messages": [...]}`` to token ids."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from specblock.errors import SpecBlockError


@dataclass(frozen=True)
class Prompt:
    """One conversation that ends in a user turn, rendered by the chat template."""

    id: str
    messages: list[dict[str, str]]
    ids: list[int]


def open_text(path: Path) -> io.TextIOBase:
    """Open ``.jsonl`` or ``.jsonl.zst`` as text. Raises :class:`SpecBlockError` if missing."""
    if not path.is_file():
        raise SpecBlockError(f"There is no prompt file {path}; check the path.")
    if path.suffix == ".zst":
        return zstandard.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def read_rows(path: Path) -> Iterator[dict]:
    """The JSON objects of a prompt file, one a line; names the line that is broken."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise SpecBlockError(
                    f"{path}, line {number} is not a JSON object ({error.msg}); repair or drop it."
                ) from error


def render(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation with the header of the coming answer."""
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    return list(rendered["input_ids"] if hasattr(rendered, "keys") else rendered)


def read_prompts(path: Path, tokenizer, *, limit: int | None, max_tokens: int) -> list[Prompt]:
    """The first ``limit`` prompts of at most ``max_tokens`` tokens; empty ones are skipped."""
    prompts = []
    for row in read_rows(path):
        messages = row.get("messages") or []
        if not messages or not messages[-1].get("content", "").strip():
            continue
        ids = render(tokenizer, messages)
        if len(ids) <= max_tokens:
            prompts.append(Prompt(str(row["id"]), messages, ids))
        if limit is not None and len(prompts) >= limit:
            break
    return prompts
