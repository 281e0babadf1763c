"""What a request lets be written: a grammar, and biases of single tokens.

Each is a logits processor: called once per token of the text, in order, with the target's scores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import llguidance
import llguidance.hf
import torch
from llguidance import numpy as masks  # its torch module compiles
from torch import Tensor

from specblock.own import Own
from specblock.serving.api.errors import ApiError
from specblock.serving.decoding.schemas import endless

__all__ = ["Bias", "Grammars", "JsonGrammar"]

# Compact but for one blank where people write one: with any white space allowed, a small model may
# write nothing else.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Bias:
    """Adds to the scores of single tokens. ``biases``: by token id."""

    def __init__(self, biases: Mapping[int, float]):
        self._tokens, self._values = list(biases), list(biases.values())

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self._tokens] += scores.new_tensor(self._values)
        return scores


class JsonGrammar:
    """Leaves possible only what continues the JSON of a schema, and then the end.

    ``ends``: tokens that end an answer.
    """

    def __init__(self, matcher: llguidance.LLMatcher, ends: list[int]):
        self._matcher, self._ends, self._begun = matcher, ends, False

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        matcher, newest = self._matcher, int(ids[0, -1])
        if self._begun and newest in self._ends:
            return scores  # a draft goes on beyond the end, where nothing is kept
        if self._begun and not matcher.is_stopped():
            matcher.consume_token(newest)
        self._begun = True
        allowed = masks.allocate_token_bitmask(1, scores.shape[-1])
        if not matcher.is_stopped():
            masks.fill_next_token_bitmask(matcher, allowed)
        if matcher.is_error():  # get_error() is a dump of its state here
            raise _refusal("what is written leads to no JSON of it")
        if matcher.is_stopped():  # nothing can be added
            ending = torch.full_like(scores, -math.inf)
            ending[:, self._ends] = scores[:, self._ends]
            return ending
        found = scores.cpu()
        masks.apply_token_bitmask_inplace(found.numpy(), allowed)
        return found.to(scores.device)


class Grammars:
    """Makes grammars for one tokenizer.

    Args:
        tokenizer: of transformers. vocabulary: rows of the logits. ends: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: list[int]):
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, ends

    @cached_property
    def tokenizer(self) -> llguidance.LLTokenizer | None:
        """llguidance's own; None where it cannot read the tokenizer. Takes a second."""
        with Own():
            return llguidance.hf.from_tokenizer(
                self._tokenizer, self._vocabulary, eos_token=self._ends
            )
        return None

    def of_schema(self, schema: Mapping[str, Any]) -> JsonGrammar:
        """The grammar of a JSON schema.

        Raises:
            ApiError: the schema is none, or uses what cannot be followed.
        """
        if self.tokenizer is None:
            raise ApiError(
                400,
                "response_format is not supported for this model's tokenizer: leave it out.",
                param="response_format",
                code="unsupported_parameter",
            )
        words = "cannot be read"
        with Own() as own:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(schema), overrides=_LAYOUT
            )
            matcher = llguidance.LLMatcher(self.tokenizer, grammar, log_level=0)
            words = matcher.get_error() if matcher.is_error() else ""
        if own.error is not None or words:
            raise _refusal(str(own.error or words).partition("\n")[0])
        if endless(schema) or not _can_begin(matcher):
            raise _refusal("no finite JSON fulfils it")
        return JsonGrammar(matcher, self._ends)


def _can_begin(matcher: llguidance.LLMatcher) -> bool:
    """Whether there is a first token."""
    trial = matcher.deep_copy()
    trial.compute_bitmask()
    return not trial.is_error()


def _refusal(why: str) -> ApiError:
    return ApiError(
        400, f"The JSON schema cannot be followed: {why}."[:500], param="response_format"
    )
