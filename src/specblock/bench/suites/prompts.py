"""Prompts for measuring, from files of any form that training reads too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from specblock.errors import SpecBlockError
from specblock.target.chat.template import chat_text, naming
from specblock.training.data.conversation import Message, RowError, conversation, row_name
from specblock.training.data.rows import BrokenRows, read_rows

__all__ = ["BenchPrompt", "Message", "check_templates", "load_prompts"]


@dataclass(frozen=True)
class BenchPrompt:
    """A conversation to generate: ``lead`` comes before the first of the user ``turns``.

    ``where`` it was read, for sentences.
    """

    id: str
    task: str
    lead: tuple[Message, ...]
    turns: tuple[str, ...]
    where: str = field(default="", compare=False)

    @staticmethod
    def from_row(row: Mapping[str, Any], default_id: str, where: str = "") -> BenchPrompt:
        """Read one row (docs/training.md has the forms).

        What the user says last is asked; earlier turns are asked too as far as no answer follows
        them. What is before an answer is given, answer included, and a last answer is dropped.

        Raises:
            RowError: the row has none of the forms, or nobody asks anything.
        """
        messages = conversation(row)
        while messages and messages[-1]["role"] != "user":
            messages.pop()
        asked = list(takewhile(lambda message: message["role"] == "user", reversed(messages)))
        if not asked:
            raise RowError("no user turn", "it has no user turn")
        task = row.get("task")
        if isinstance(task, bool) or not isinstance(task, str | int | None):
            raise RowError("another form", "it has a task that is no text")
        return BenchPrompt(
            id=row_name(row, "id") or default_id,
            task="" if task is None else str(task),
            lead=tuple(messages[: len(messages) - len(asked)]),
            turns=tuple(message["content"] for message in reversed(asked)),
            where=where,
        )


def load_prompts(path: str | Path, limit: int | None = None) -> list[BenchPrompt]:
    """The first ``limit`` prompts of a file; all without a limit.

    Raises:
        SpecBlockError: the file cannot be read, a row cannot be used (it is named), or there is
            no prompt in it.
    """
    path = Path(path)
    prompts: list[BenchPrompt] = []
    broken = BrokenRows()
    for where, number, row in read_rows(path, broken):
        if limit is not None and len(prompts) >= limit:
            break
        try:
            prompts.append(BenchPrompt.from_row(row, f"{path.name}:{number}", where))
        except RowError as error:
            broken(where, error)
    if not prompts:
        raise SpecBlockError(f"{path} holds no prompts: give a JSONL file with one on each line.")
    return prompts


def check_templates(tokenizer: Any, prompts: Iterable[BenchPrompt]) -> None:
    """Refuse before anything is measured what the chat template refuses; names the row.

    Raises:
        ModelError: the tokenizer has no chat template.
        RefusedByTemplateError: it refuses a conversation.
    """
    for prompt in prompts:
        messages = list(prompt.lead)
        with naming(prompt.where or prompt.id):
            for turn in prompt.turns:
                messages.append({"role": "user", "content": turn})
                chat_text(tokenizer, messages)
                messages.append({"role": "assistant", "content": "Yes."})
