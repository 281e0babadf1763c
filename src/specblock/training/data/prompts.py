"""Prompts: rows of JSONL files to normalised conversations, and those to token ids."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from specblock.errors import ModelError, SpecBlockError

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Prompt:
    """A conversation to be answered: its first turn, rendered, and what the user says later.

    ``messages`` end with the first user turn, ``ids`` are their tokens with the header of the
    coming answer. Every element of ``later`` ends with one more user turn.
    """

    id: str
    messages: list[Message]
    ids: list[int]
    later: tuple[list[Message], ...] = ()


def open_lines(path: Path) -> BinaryIO:
    """Open ``.jsonl`` or ``.jsonl.zst`` as bytes. Raises :class:`SpecBlockError` if missing."""
    if not path.is_file():
        raise SpecBlockError(f"There is no prompt file {path}; check the path.")
    if path.suffix == ".zst":
        return io.BufferedReader(zstandard.open(path, "rb"))
    return path.open("rb")


def read_rows(
    path: Path, on_broken: Callable[[str], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, JSON object) of every line that is not blank.

    A broken line is named by its number: in the :class:`SpecBlockError` raised, or, where
    ``on_broken`` is given, in the sentence that it receives before the line is skipped.
    """
    with open_lines(path) as lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield number, parse_row(line)
                except ValueError as error:
                    sentence = f"{path}, line {number} is not a JSON object ({error})"
                    if on_broken is None:
                        raise SpecBlockError(f"{sentence}; repair or drop it.") from error
                    on_broken(f"{sentence}.")
        except zstandard.ZstdError as error:
            raise SpecBlockError(
                f"{path} is damaged after line {number}: it is not a whole zstd file."
            ) from error


def parse_row(line: bytes) -> dict[str, Any]:
    """One JSON object. Raises :class:`ValueError` with a few words on what is wrong."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__} instead")
    return row


def conversation(row: dict[str, Any]) -> list[Message]:
    """The messages of a row in any of the usual shapes, text cleaned, blank ones left out.

    Shapes: ``messages`` (role, content), ``conversations`` or ``conversation`` (the same, or
    ShareGPT's from, value), ``turns`` (the user's texts), ``prompt`` (one text, or messages).
    Nothing is kept from the first blank user turn on: what follows would answer to nothing.

    Raises:
        ValueError: the row has none of them, or a message that is not text of a known role.
    """
    given = next(
        (row[key] for key in ("messages", "conversations", "conversation", "turns", "prompt")
         if row.get(key)), None
    )  # fmt: skip
    if given is None:
        if any(key in row for key in ("messages", "conversations", "turns", "prompt")):
            return []
        raise ValueError("no messages, conversations, turns or prompt")
    messages = []
    for entry in [given] if isinstance(given, str) else given:
        message = _message(entry)
        if message["content"]:
            messages.append(message)
        elif message["role"] == "user":
            break
    return messages


def _message(entry: Any) -> Message:
    if isinstance(entry, str):
        return {"role": "user", "content": clean(entry)}
    if not isinstance(entry, dict):
        raise ValueError(f"a message that is a {type(entry).__name__}")
    role = str(entry.get("role", entry.get("from", ""))).lower()
    if role not in ROLES:
        raise ValueError(f"a message of the role '{role}'")
    content = entry.get("content", entry.get("value"))
    if isinstance(content, list) and all(isinstance(p, dict) and "text" in p for p in content):
        content = "".join(str(part["text"]) for part in content)
    if content is not None and not isinstance(content, str):
        raise ValueError("a message that is not text")
    return {"role": ROLES[role], "content": clean(content or "")}


def clean(text: str) -> str:
    """NFC, line feeds alone between lines, no control characters, no space around."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    # half a surrogate pair can be said in JSON, but not in UTF-8
    kept = (c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    return "".join(kept).strip()


def render(tokenizer, messages: list[Message], *, answer_follows: bool = True) -> list[int]:
    """Token ids of a conversation, by default with the header of the coming answer.

    Raises:
        ModelError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "The target's tokenizer has no chat template: choose an instruction-tuned target, or "
            "put a chat_template.jinja into its folder."
        )
    try:
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=answer_follows, tokenize=True
        )
    except TemplateError as error:
        raise ModelError(f"The target's chat template refuses a conversation: {error}.") from error
    return list(rendered["input_ids"] if hasattr(rendered, "keys") else rendered)


def user_turns(messages: list[Message]) -> list[list[Message]]:
    """The conversation without its answers, in groups that end with one user turn each."""
    groups: list[list[Message]] = [[]]
    for message in messages:
        if message["role"] != "assistant":
            groups[-1].append(message)
        if message["role"] == "user":
            groups.append([])
    return groups[:-1]


def read_prompts(path: Path, tokenizer, *, limit: int | None, max_tokens: int) -> list[Prompt]:
    """The first ``limit`` conversations whose first turn has at most ``max_tokens`` tokens.

    Answers in the file are left out, conversations without a user turn skipped. Rows without an
    id are named after their line.

    Raises:
        SpecBlockError: a line is broken, or two have the same id.
    """
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}
    for number, row in read_rows(path):
        try:
            turns = user_turns(conversation(row))
        except ValueError as error:
            raise SpecBlockError(
                f"{path}, line {number} has {error}: run `specblock prepare-data` on the file."
            ) from error
        if not turns:
            continue
        name = str(row.get("id", f"line-{number}"))
        if name in lines:
            raise SpecBlockError(
                f"{path}, lines {lines[name]} and {number} have the same id {name}: answers would "
                f"be mixed up; run `specblock prepare-data` on the file."
            )
        lines[name] = number
        ids = render(tokenizer, turns[0])
        if len(ids) <= max_tokens:
            prompts.append(Prompt(name, turns[0], ids, tuple(turns[1:])))
        if limit is not None and len(prompts) >= limit:
            break
    return prompts
