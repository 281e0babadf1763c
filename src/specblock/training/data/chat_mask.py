"""Which tokens of a conversation are the answer: two renderings by the chat template, compared.

Templates hardly ever mark what the assistant says ({% generation %}), and their headers differ.
So the conversation is rendered with and without the answer, and what the answer adds is what is
trained on, the end-of-turn token included, what the template writes after that not.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rich.text import Text

from specblock.errors import SpecBlockError
from specblock.target.chat.template import chat_text, chat_tokens, naming
from specblock.training.data.answers import Answer
from specblock.training.data.conversation import Message, RowError, conversation, row_name
from specblock.training.data.rows import BrokenRows, read_rows

TRAINED, GIVEN = "green", "dim"
PROBE = "Yes."


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two lists share at the front."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def common_suffix(one: list[int], other: list[int]) -> int:
    """How many tokens two lists share at the end."""
    return common_prefix(one[::-1], other[::-1])


def answer_tail(tokenizer) -> tuple[list[int], int]:
    """What the template writes after an answer, and how many tokens of it end the turn.

    The end-of-turn token is the first special one of the tail; where there is none, the first
    token if it is more than space.
    """
    return _tail(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _tail(tokenizer, template: str) -> tuple[list[int], int]:
    asked = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": PROBE}]
    text = chat_text(tokenizer, asked, answer_follows=False)
    tail = tokenizer.encode(text.rpartition(PROBE)[2], add_special_tokens=False)
    special = set(tokenizer.all_special_ids)
    for place, token in enumerate(tail):
        if token in special:
            return tail, place + 1
    return tail, int(bool(tail) and bool(tokenizer.decode(tail[:1]).strip()))


def masked_answer(
    tokenizer, messages: list[Message], *, name: str = "", turn: int = 0, stopped: bool = True
) -> Answer:
    """The last message of ``messages``, an assistant's, as an :class:`Answer` to those before.

    ``stopped`` False leaves the end-of-turn token out: the answer was cut off.

    Raises:
        SpecBlockError: the tokenizer has no chat template, or the mask would be empty or full.
    """
    before = chat_tokens(tokenizer, messages[:-1])
    whole = chat_tokens(tokenizer, messages, answer_follows=False)
    start = common_prefix(before, whole)
    if start < len(before) and (joined := _joined(tokenizer, messages, before, whole)):
        whole, start = joined, len(before)
    elif start < len(before):
        # a template may open the answer in another way than the prompt promised (a thought that
        # is left out), but what came before has to stay as it was
        asked = chat_tokens(tokenizer, messages[:-1], answer_follows=False)
        if start < common_prefix(asked, before):
            raise SpecBlockError(
                "The chat template renders the question differently once it is answered, so that "
                "nothing but the whole conversation could be trained on: use another template."
            )
    tail, ending = answer_tail(tokenizer)
    length = common_suffix(whole[start:], tail)
    # a tail may begin in another way behind another text: count its end from what is shared
    ending = max(0, ending - (len(tail) - length)) if stopped else 0
    body = len(whole) - length
    answer = Answer(name, whole[:start], whole[start : body + ending], ending > 0, turn)
    check_mask(answer, ending)
    return answer


def _joined(
    tokenizer, messages: list[Message], before: list[int], whole: list[int]
) -> list[int] | None:
    """``whole`` as decoding meets it where only tokens differ that span header and answer.

    The target goes on from the tokens of the header: line feeds of the two never merge.
    """
    prompt = chat_text(tokenizer, messages[:-1])
    text = chat_text(tokenizer, messages, answer_follows=False)
    if not text.startswith(prompt):
        return None
    joined = before + tokenizer.encode(text[len(prompt) :], add_special_tokens=False)
    return joined if tokenizer.decode(joined) == tokenizer.decode(whole) else None


def check_mask(answer: Answer, ending: int) -> None:
    """Refuse an answer that trains on nothing but its ``ending`` tokens, or on the prompt too."""
    if len(answer.answer_ids) <= ending:
        raise SpecBlockError(
            f"The loss mask of conversation '{answer.id}' is empty: the chat template drops the "
            f"assistant's text; use a template that renders it."
        )
    if not answer.prompt_ids:
        raise SpecBlockError(
            f"The loss mask of conversation '{answer.id}' is full: the chat template renders "
            f"nothing before the answer; use a template that renders the question."
        )


def read_conversations(
    path: Path,
    tokenizer,
    *,
    limit: int | None = None,
    max_tokens: int | None = None,
    min_tokens: int = 8,
    broken: BrokenRows | None = None,
) -> list[Answer]:
    """Answers that a file of conversations holds already, one for every assistant turn.

    ``limit`` is the most answers; those with a context over ``max_tokens`` or of fewer than
    ``min_tokens`` are left out. Shapes of rows:
    :func:`specblock.training.data.conversation.conversation`.

    Raises:
        SpecBlockError: a row that cannot be used (unless ``broken`` skips them) or that the chat
            template refuses, no answer, or an empty or full mask.
    """
    answers: list[Answer] = []
    broken = broken or BrokenRows()
    for where, number, row in read_rows(path, broken):
        try:
            messages = conversation(row)
        except RowError as error:
            broken(where, error)
            continue
        name = row_name(row, "id") or f"line-{number}"
        for turn, last in enumerate(_answered(messages)):
            if limit is not None and len(answers) >= limit:
                return answers
            with naming(where):
                answer = masked_answer(tokenizer, messages[: last + 1], name=name, turn=turn)
            short = max_tokens is None or len(answer.ids) <= max_tokens
            if short and len(answer.answer_ids) >= min_tokens:
                answers.append(answer)
    if not answers:
        raise SpecBlockError(
            f"{path} holds no assistant turn of {min_tokens} tokens that fits: it needs "
            f"conversations with answers, or `specblock regenerate` to make some."
        )
    return answers


def _answered(messages: list[Message]) -> list[int]:
    """Where the assistant answers a user."""
    return [
        i
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and i and messages[i - 1]["role"] == "user"
    ]


def coloured_sample(tokenizer, answer: Answer, *, most: int = 400) -> Text:
    """The conversation for a terminal: given tokens dim, trained ones green, at most ``most``.

    Of a long prompt the end is shown, of a long answer the beginning.
    """
    given = answer.prompt_ids[-(most // 2) :]
    trained = answer.answer_ids[: most - len(given)]
    sample = Text()
    if len(given) < len(answer.prompt_ids):
        sample.append("… ", style=GIVEN)
    for ids, style in ((given, GIVEN), (trained, TRAINED)):
        # what a model says must not steer the terminal
        sample.append(tokenizer.decode(ids).replace("\x1b", "␛"), style=style)
    if len(trained) < len(answer.answer_ids):
        sample.append(" …", style=GIVEN)
    return sample
