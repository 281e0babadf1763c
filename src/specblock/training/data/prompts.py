"""Prompts: normalised conversations to the token ids that the target is asked with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from specblock.errors import SpecBlockError
from specblock.target.chat.template import chat_text, chat_tokens, naming
from specblock.training.data.conversation import Message, RowError, conversation, row_name
from specblock.training.data.rows import BrokenRows, read_rows

_ADVICE = "repair or drop it, or run `specblock prepare-data` on the file with --on-error skip"
_STAND_IN = "Yes."  # for an answer that the target has not given yet


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


def user_turns(messages: list[Message]) -> list[list[Message]]:
    """The conversation without its answers, in groups that end with one user turn each."""
    groups: list[list[Message]] = [[]]
    for message in messages:
        if message["role"] != "assistant":
            groups[-1].append(message)
        if message["role"] == "user":
            groups.append([])
    return groups[:-1]


def check_template(tokenizer, turns: list[list[Message]], where: str) -> None:
    """Refuse now what the chat template would refuse once the turns before are answered.

    Raises:
        ModelError: the tokenizer has no chat template.
        RefusedByTemplateError: the template refuses the conversation; names the row.
    """
    messages: list[Message] = []
    with naming(where):
        for number, turn in enumerate(turns):
            answer = [{"role": "assistant", "content": _STAND_IN}] if number else []
            messages += [*answer, *turn]
            chat_text(tokenizer, messages)


def check_ids(ids: Iterable[int], vocabulary: int | None, where: str) -> None:
    """Refuse token ids that the target has no embedding of; None knows no limit.

    Raises:
        SpecBlockError: names the row and the id.
    """
    largest = max(ids, default=0)
    if vocabulary is not None and largest >= vocabulary:
        raise SpecBlockError(
            f"{where} has the token id {largest}, but the target's vocabulary ends at "
            f"{vocabulary - 1}: use this model's own tokenizer and answers."
        )


def read_prompts(
    path: Path,
    tokenizer,
    *,
    limit: int | None,
    max_tokens: int,
    vocabulary: int | None = None,
) -> list[Prompt]:
    """The first ``limit`` conversations whose first turn has at most ``max_tokens`` tokens.

    Answers in the file are left out, conversations without a user turn skipped. Rows without an
    id are named after their line. ``vocabulary``: how many tokens the target knows.

    Raises:
        SpecBlockError: a row cannot be used, the chat template refuses it, it has a token that the
            target does not know, or two have the same id; names the row.
    """
    prompts: list[Prompt] = []
    lines: dict[str, int] = {}
    broken = BrokenRows(advice=_ADVICE)
    for where, number, row in read_rows(path, broken):
        try:
            turns = user_turns(conversation(row))
        except RowError as error:
            broken(where, error)
            continue
        if not turns:
            continue
        name = row_name(row, "id") or f"line-{number}"
        if name in lines:
            raise SpecBlockError(
                f"{path}, lines {lines[name]} and {number} have the same id {name}: answers would "
                f"be mixed up; run `specblock prepare-data` on the file."
            )
        lines[name] = number
        with naming(where):
            ids = chat_tokens(tokenizer, turns[0])
        if len(turns) > 1:
            check_template(tokenizer, turns, where)
        check_ids(ids, vocabulary, where)
        if len(ids) <= max_tokens:
            prompts.append(Prompt(name, turns[0], ids, tuple(turns[1:])))
        if limit is not None and len(prompts) >= limit:
            break
    return prompts
