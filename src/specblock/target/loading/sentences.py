"""What other libraries raise, shortened to a sentence of ours."""

from __future__ import annotations

__all__ = ["first_sentence"]


def first_sentence(error: BaseException) -> str:
    """The first line of an error's message, with a full stop; its kind where it has none."""
    lines = str(error).strip().splitlines()
    text = " ".join(lines[0].split()) if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."
