"""What a row of chat data may look like: one schema for every file that conversations come from.

docs/training.md lists the forms. What is none of them is refused with a reason, because a row that
is read as something else trains or measures on garbage without a word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
TOOL_ROLES = {"tool", "function", "function_call", "observation", "tool_call", "ipython"}

# where a conversation may stand in a row, the first that is there counts
_CHATS = ("messages", "conversations", "conversation")
_QUESTIONS = ("prompt", "instruction", "question", "query")
_MORE = ("input", "context")  # of a question, below it
_ANSWERS = ("response", "output", "completion", "answer")
_SYSTEM = ("system_prompt", "system")
_PAIRS = (("role", "content"), ("from", "value"))
# what an answer was given to besides the text; without it the text is another question
_BESIDES = {
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), "tool calls"),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), "images or sound"),
    **dict.fromkeys(("choices", "options"), "choices"),
}
_NOTHING = (None, "", "[]", "{}", [], {})


class RowError(ValueError):
    """A row that cannot be used. The text says why, to follow "cannot be used:"; ``kind`` is the
    reason in few words, by which such rows are counted."""

    def __init__(self, kind: str, words: str):
        super().__init__(words)
        self.kind = kind


def conversation(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row in any of the known forms, text cleaned; may be empty.

    Raises:
        RowError: the row has none of the forms, or something in it is not text that a system, a
            user or an assistant says.
    """
    try:
        found = _Row.model_validate(row)
    except ValidationError as error:
        raise _row_error(error) from None
    return [message.model_dump() for message in found.messages]


def row_name(row: Mapping[str, Any], *keys: str) -> str | None:
    """The first of ``keys`` that is a name: a text that is not empty, or a whole number."""
    names = (row.get(key) for key in keys)
    usable = (n for n in names if isinstance(n, str | int) and not isinstance(n, bool) and n != "")
    return next((str(name) for name in usable), None)


def clean(text: str) -> str:
    """NFC, line feeds alone between lines, no control characters, no space around."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    # half a surrogate pair can be said in JSON, but not in UTF-8
    kept = (c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    return "".join(kept).strip()


def _refusal(kind: str, words: str) -> PydanticCustomError:
    return PydanticCustomError(kind, "{words}", {"words": words})


def _row_error(error: ValidationError) -> RowError:
    """The first complaint, with the number of the message that it is about."""
    first = error.errors(include_url=False)[0]
    number = next((part for part in first["loc"] if isinstance(part, int)), None)
    subject = "it" if number is None else f"message {number + 1}"
    if first["type"] == "missing":
        return RowError(f"no {first['loc'][-1]}", f"{subject} has no {first['loc'][-1]}")
    if "words" not in first.get("ctx", {}):
        return RowError("another form", f"{subject} is {_kind_of(first['input'])}, not a message")
    return RowError(first["type"], f"{subject} {first['ctx']['words']}")


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    names = {str: "a text", bool: "true or false", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _role(value: Any) -> Any:
    if not isinstance(value, str):
        raise _refusal("no role", f"has no role: it is {_kind_of(value)}")
    name = value.strip().lower()
    if name in TOOL_ROLES:
        raise _refusal("tool calls", f"belongs to a tool call (its role is '{value}')")
    if name not in ROLES:
        raise _refusal("unknown role", f"has the unknown role '{value}'")
    return ROLES[name]


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = "".join(map(_part, value))
    if not isinstance(value, str):
        raise _refusal("no text", f"has no text: its content is {_kind_of(value)}")
    text = clean(value)
    if not text:
        raise _refusal("blank text", "is blank")
    return text


def _part(part: Any) -> str:
    """One of the parts that a message's content may be made of."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise _refusal("no text", f"has a part that is {_kind_of(part)}")
    kind = part.get("type", "text")
    if kind not in ("text", "input_text", "output_text"):
        raise _refusal(f"parts of type {kind}", f"has a part of type '{kind}', which is no text")
    if not isinstance(part.get("text"), str):
        raise _refusal("no text", f"has a part whose text is {_kind_of(part.get('text'))}")
    return part["text"]


def _refuse_besides(values: Mapping[str, Any]) -> None:
    for key, kind in _BESIDES.items():
        if values.get(key) not in _NOTHING:
            raise _refusal(kind, f"has {kind} ({key}), which the conversation would lack")


def _contradicts(entry: Mapping[str, Any]) -> bool:
    """Whether both pairs of names are there and say different things."""
    said = [[entry.get(name) for name in pair] for pair in _PAIRS]
    if any(value is None for pair in said for value in pair):
        return False
    roles = [ROLES.get(str(role).strip().lower(), role) for role, _ in said]
    return roles[0] != roles[1] or said[0][1] != said[1][1]


class _Message(BaseModel):
    """Who says what; both pairs of names, ``from`` and ``value`` only where the others are not."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Annotated[Literal["system", "user", "assistant"], BeforeValidator(_role)]
    content: Annotated[str, BeforeValidator(_text)]

    @model_validator(mode="before")
    @classmethod
    def _of_either_pair(cls, entry: Any) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        _refuse_besides(entry)
        if _contradicts(entry):
            raise _refusal("another form", "has role and content and another from and value")
        pair = next((pair for pair in _PAIRS if any(name in entry for name in pair)), None)
        if pair is None:
            raise _refusal("another form", "has neither role and content nor from and value")
        # a null is not taken for an absence: who filled the columns up may have mixed them up
        named = zip(("role", "content"), pair, strict=True)
        return {own: entry[theirs] for own, theirs in named if theirs in entry}


class _Row(BaseModel):
    """A conversation, whatever it is called."""

    messages: tuple[_Message, ...]

    @model_validator(mode="before")
    @classmethod
    def _of_any_form(cls, row: Any) -> dict[str, Any]:
        _refuse_besides(row)
        messages = [*_chat(row)]
        system = next((row[key] for key in _SYSTEM if row.get(key) not in (None, "")), None)
        starts = messages[0] if messages and isinstance(messages[0], Mapping) else {}
        own = str(starts.get("role", starts.get("from"))).strip().lower()
        if system is not None and ROLES.get(own) != "system":
            messages.insert(0, {"role": "system", "content": system})
        return {"messages": messages}


def _chat(row: Mapping[str, Any]) -> list[Any]:
    """The messages of a row, not looked into yet."""
    name = next((key for key in _CHATS if row.get(key) not in _NOTHING), None)
    turns = row.get("turns")
    if name is not None:
        if isinstance(row[name], str):
            raise _refusal("another form", f"has {name} that are a text, not a list of messages")
        return _with_turns(_listed(row[name]), turns)
    if turns not in _NOTHING:
        return _listed(turns, texts=True)
    for key in _QUESTIONS:
        if row.get(key) is not None:
            return _question(row, key)
    if any(row.get(key) is not None for key in (*_CHATS, "turns")):
        return []
    names = ", ".join((*_CHATS, "turns", *_QUESTIONS))
    raise _refusal("no conversation", f"has none of {names}")


def _listed(given: Any, *, texts: bool = False) -> list[Any]:
    """Messages from a list, from columns, from a single one; ``texts`` may be lists of the user's.

    Of a list of texts under another name nobody knows who says which.
    """
    if isinstance(given, str):
        return [_said(given)]
    if isinstance(given, Mapping):
        columns = [isinstance(given.get(name), list) for pair in _PAIRS[1:] for name in pair]
        columns += [isinstance(given.get(_PAIRS[0][0]), list)]
        return _from_columns(given) if any(columns) else [given]
    if not isinstance(given, list):
        raise _refusal("another form", f"has messages that are {_kind_of(given)}")
    return [_said(one) if texts and isinstance(one, str) else one for one in given]


def _from_columns(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages of a struct of lists, as tables keep them."""
    columns = {name: column for name, column in given.items() if isinstance(column, list)}
    named = [name for pair in _PAIRS for name in pair if name in given]
    lengths = {name: len(columns.get(name, ())) for name in named}
    if len(set(lengths.values())) != 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise _refusal("uneven columns", f"has columns of different lengths ({told})")
    (length,) = set(lengths.values())
    full = {name: column for name, column in columns.items() if len(column) == length}
    return [{name: column[i] for name, column in full.items()} for i in range(length)]


def _with_turns(messages: list[Any], turns: Any) -> list[Any]:
    """``messages`` and the user's later ``turns``, the first of which is the last message."""
    if turns in _NOTHING:
        return messages
    first, *later = _listed(turns, texts=True)
    pair = messages[-1], first
    said = [one.get("content") if isinstance(one, Mapping) else one for one in pair]
    if said[0] != said[1]:
        raise _refusal("another form", "has messages that do not end in the first of its turns")
    return [*messages, *later]


def _question(row: Mapping[str, Any], key: str) -> list[Any]:
    """A question under one of the usual names, with its answer where that is a text."""
    asked = row[key]
    more = next((row[name] for name in _MORE if row.get(name) not in (None, "")), None)
    if isinstance(asked, str) and more is not None:
        if not isinstance(more, str):
            raise _refusal("no text", f"has an input or context that is {_kind_of(more)}")
        asked = f"{asked}\n\n{more}"
    if more is not None and not isinstance(asked, str):
        raise _refusal("no text", f"has a {key} that is {_kind_of(asked)} beside an input")
    if not isinstance(asked, str | list | Mapping):
        raise _refusal("no text", f"has a {key} that is {_kind_of(asked)}, not text")
    answers = (row.get(name) for name in _ANSWERS)
    answer = next((a for a in answers if isinstance(a, str) and a.strip()), None)
    said = [] if answer is None else [{"role": "assistant", "content": answer}]
    return [*_listed(asked, texts=True), *said]


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
