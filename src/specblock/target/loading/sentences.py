"""What other libraries raise, shortened to a sentence of ours."""

from __future__ import annotations

__all__ = ["first_sentence"]


def first_sentence(error: BaseException) -> str:
    """The first line of an error's message, with a full stop; its kind where it has none.

    A line that ends in a colon is not the whole of it: the next one is added.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    first = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    text = " ".join(first.split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."
