"""Where a model ends its answers."""

from __future__ import annotations

from typing import Any

__all__ = ["end_tokens"]


def end_tokens(model: Any, tokenizer: Any | None) -> frozenset[int]:
    """The tokens at which a model ends an answer, by its own settings and its tokenizer."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    return frozenset(ends)
