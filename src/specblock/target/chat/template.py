"""A conversation through a tokenizer's chat template; whatever it refuses is said in a sentence.

Templates are programs that ship with models. Many refuse a system message, or roles that do not
take turns, and say so in words of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from specblock.errors import ModelError, RefusedByTemplateError

Messages = Sequence[dict[str, str]]


def chat_tokens(tokenizer: Any, messages: Messages, *, answer_follows: bool = True) -> list[int]:
    """Token ids of a conversation, by default with the header of the coming answer.

    Raises:
        ModelError: the tokenizer has no chat template.
        RefusedByTemplateError: the template refuses the conversation; says in which words.
    """
    with _explained(tokenizer):
        rendered = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=answer_follows, tokenize=True, return_dict=True
        )
    return list(rendered["input_ids"])


def chat_text(tokenizer: Any, messages: Messages, *, answer_follows: bool = True) -> str:
    """The same as text; arguments and errors as there."""
    with _explained(tokenizer):
        return tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=answer_follows, tokenize=False
        )


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Let a refusal within begin with the row or conversation that it is about."""
    try:
        yield
    except RefusedByTemplateError as error:
        raise RefusedByTemplateError(error.words, where) from error


@contextmanager
def _explained(tokenizer: Any) -> Iterator[None]:
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "The target's tokenizer has no chat template: choose an instruction-tuned target, or "
            "put a chat_template.jinja into its folder."
        )
    try:
        yield
    # jinja runs the template's own Python: it adds, indexes and calls what a message holds
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        words = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RefusedByTemplateError(words.rstrip(".")) from error
