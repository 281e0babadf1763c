"""Prompts that a model writes itself, and those of a file, as token ids.

A chat model is shown the beginning of a user's turn and goes on: what it writes is what its users
wrote in training (Magpie, Xu et al. 2024, arXiv 2406.08464). A base model goes on from a word.
"""

from __future__ import annotations

import json
import math
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from specblock.errors import ModelError
from specblock.storage import explain_disk_errors, write_atomically
from specblock.target.architecture.structure import text_config
from specblock.target.chat.ends import end_tokens
from specblock.target.chat.template import chat_text
from specblock.training.data.conversation import RowError, clean, conversation, row_name
from specblock.training.data.prompts import Prompt, check_ids, read_prompts, user_turns
from specblock.training.data.regenerate import RegenerateConfig, answers
from specblock.training.data.rows import BrokenRows, read_rows
from specblock.training.data.turns import Turn

__all__ = ["PromptWriter", "asked_of", "is_chat"]

SEEDS = ("The", "In", "A", "How", "When", "It", "We", "My", "What", "On", "There", "To")
TURN_TOKENS, TEXT_TOKENS = 96, 24  # most of a user's turn, of the beginning of a text
SHORTEST = 4  # characters of a prompt
_MARK = "0123456789"  # stands for the user's words while the template is read


def is_chat(tokenizer: Any) -> bool:
    """Whether the model was taught a form of conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


def asked_of(path: Path, tokenizer: Any, most_tokens: int, vocabulary: int) -> list[Prompt]:
    """The prompts of a file, of a turn each; what a base model is asked is the text alone.

    Raises:
        SpecBlockError: a row cannot be used, or has a token that the target does not know.
    """
    if is_chat(tokenizer):
        found = read_prompts(
            path, tokenizer, limit=None, max_tokens=most_tokens, vocabulary=vocabulary
        )
        return [Prompt(prompt.id, prompt.messages, prompt.ids) for prompt in found]
    prompts, broken = [], BrokenRows()
    for where, number, row in read_rows(path, broken):
        try:
            turns = user_turns(conversation(row))
        except RowError as error:
            broken(where, error)
            continue
        if not turns:
            continue
        ids = list(tokenizer(turns[0][-1]["content"])["input_ids"])
        check_ids(ids, vocabulary, where)
        if 0 < len(ids) <= most_tokens:
            prompts.append(Prompt(row_name(row, "id") or f"line-{number}", turns[0][-1:], ids))
    return prompts


class PromptWriter:
    """Appends prompts that the model writes to a file, each once.

    Args:
        path: ``.jsonl``, with what an earlier run wrote.
        batch: prompts written together. Three times as many are drawn at a time: the later ones
            do not read their common beginning again.

    Raises:
        RefusedByTemplateError: the chat template refuses a user's turn.
        ModelError: it does not show the user's words as they are.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, path: Path, seed: int, batch: int):
        self.model, self.tokenizer, self.path = model, tokenizer, path
        self._count, self._numbered = 3 * batch, 0
        longest = TURN_TOKENS if is_chat(tokenizer) else TEXT_TOKENS
        self._config = RegenerateConfig(
            max_new_tokens=longest, batch_size=batch, temperatures=((1.0, 1.0),), seed=seed
        )
        self._ends = end_tokens(model, tokenizer)
        self._starts, self._stop = [], ""
        if is_chat(tokenizer):
            before, self._stop = _around_user(tokenizer)
            self._starts = [self._ids(before)]
            closing = self._ids(self._stop)[:1]
            self._ends |= {i for i in closing if i in tokenizer.all_special_ids}
        else:
            self._starts = [list(tokenizer(word)["input_ids"]) for word in SEEDS]
            check_ids((i for start in self._starts for i in start),
                      text_config(model).vocab_size, "A seed")  # fmt: skip
        self._seen = {_key(row["prompt"]) for row in self._rows()}

    def _rows(self) -> Iterator[dict[str, str]]:
        """What is there; the line that a kill cut off is dropped."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._numbered = max((int(row["drawn"]) for row in rows), default=-1) + 1
        yield from rows

    def write(self, deadline: float = math.inf) -> int:
        """Draw some; returns how many of them are new and usable.

        ``deadline`` is of the monotonic clock: what is not ended then is left out, but for one.

        Raises:
            ModelError: the model gives no possible token.
        """
        turns = [self._turn(self._numbered + i) for i in range(self._count)]
        drawn = []
        for ended in answers(self.model, iter(turns), self._ends, self._config):
            drawn += ended
            if time.monotonic() > deadline:
                break
        drawn.sort(key=lambda question: int(question.turn.id))
        rows = []
        for question in drawn:
            text = self._text(question.turn.ids, question.answer)
            if text is not None and _key(text) not in self._seen:
                self._seen.add(_key(text))
                number = int(question.turn.id)
                rows.append({"id": f"own-{number:06d}", "drawn": number, "prompt": text})
        self._numbered += self._count
        with explain_disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return len(rows)

    def _turn(self, number: int) -> Turn:
        return Turn(str(number), 0, [], self._starts[number % len(self._starts)])

    def _text(self, start: list[int], drawn: list[int]) -> str | None:
        """What was written; None for a turn that did not end, or hardly anything."""
        if not is_chat(self.tokenizer):
            text = clean(self.tokenizer.decode(start + drawn, skip_special_tokens=True))
            return text if len(text) >= SHORTEST else None
        written = self.tokenizer.decode(drawn, skip_special_tokens=False)
        closing = self._stop.strip()
        ended = drawn[-1] in self._ends or (bool(closing) and closing in written)
        own = [token for token in drawn if token not in self._ends]
        text = self.tokenizer.decode(own, skip_special_tokens=True)
        text = clean(text.split(closing)[0] if closing else text)
        return text if ended and len(text) >= SHORTEST else None

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _around_user(tokenizer: Any) -> tuple[str, str]:
    """What a chat template writes before and behind the words of a first user turn."""
    before, found, behind = chat_text(tokenizer, [{"role": "user", "content": _MARK}]).partition(
        _MARK
    )
    if not found:
        raise ModelError(
            "The chat template does not show a user's words as they are, so the model cannot be "
            "asked for such: give prompts with --prompts."
        )
    return before, behind


def _key(text: str) -> str:
    """The same for texts that are equal up to spaces, case and compatibility forms."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
