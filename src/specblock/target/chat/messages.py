"""Messages as programs give them to be answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specblock.errors import ContextError

__all__ = ["checked_ids", "checked_messages"]


def checked_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """The messages with their content as text; all else is left to the chat template.

    Raises:
        ContextError: one is no message, or its content is neither text nor parts of text.
    """
    return [_checked(message, number) for number, message in enumerate(messages, 1)]


def _checked(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ContextError(
            f"Message {number} has no role: give {{'role': 'user', 'content': 'text'}}."
        )
    content = message.get("content")
    if isinstance(content, list) and all(map(_is_text, content)):
        content = "".join(part if isinstance(part, str) else part["text"] for part in content)
    if not isinstance(content, str) and not message.get("tool_calls"):
        raise ContextError(
            f"Message {number} has no text: its content is {type(content).__name__}, not a text or "
            "parts of text."
        )
    return {**message, "content": content}


def _is_text(part: Any) -> bool:
    if isinstance(part, Mapping):
        return part.get("type", "text") == "text" and isinstance(part.get("text"), str)
    return isinstance(part, str)


def checked_ids(ids: Sequence[Any], vocabulary: int) -> list[int]:
    """Token ids of a vocabulary of so many.

    Raises:
        ContextError: one is no whole number, or no token of this model.
    """
    wrong = next((i for i in ids if isinstance(i, bool) or not hasattr(i, "__index__")), None)
    if wrong is not None or None in ids:
        raise ContextError(
            f"A prompt of token ids holds {wrong!r}, which is none: give whole numbers, a text, or "
            "messages."
        )
    found = [int(one) for one in ids]
    outside = next((one for one in found if not 0 <= one < vocabulary), None)
    if outside is not None:
        raise ContextError(
            f"Token id {outside} is outside the model's vocabulary of {vocabulary}; "
            "encode the prompt with this model's tokenizer."
        )
    return found
