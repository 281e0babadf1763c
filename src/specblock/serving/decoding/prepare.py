"""From a request of the API to requests of the engine: token ids, settings, limits."""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import Any

from specblock.config import GenerationConfig
from specblock.engine.speculator import Speculator
from specblock.errors import ContextError
from specblock.serving.api.errors import ApiError
from specblock.serving.api.requests import ChatRequest, CompletionRequest, GenerationRequest
from specblock.serving.decoding.pieces import ServedAnswer
from specblock.serving.decoding.processors import Bias, Grammars
from specblock.serving.settings import ServingConfig
from specblock.tree.sampling import Processor

__all__ = ["Preparation", "check_count"]

_SEEDS = 1 << 63


class Preparation:
    """Makes answers of one speculator within the limits of ``config``."""

    def __init__(self, speculator: Speculator, config: ServingConfig):
        self._speculator, self._config = speculator, config
        ends = sorted(speculator.end_tokens())
        self.grammars = Grammars(speculator.tokenizer, speculator.target.vocab_size, ends)

    def answers(self, asked: GenerationRequest) -> list[ServedAnswer]:
        """One for each prompt and choice, prompt by prompt.

        Raises:
            ApiError: beyond a limit, or a schema that cannot be followed.
            SpecBlockError: the prompt is empty, or is not for this model.
        """
        prompts = self._prompts(asked)
        if asked.top is not None:
            _ = self.grammars.tokenizer  # which spells tokens; here it holds up nobody
        seed = secrets.randbelow(_SEEDS) if asked.seed is None else asked.seed
        found = []
        for ids in prompts:
            for choice in range(asked.n):
                config = self._config_of(asked, len(ids), seed + choice)
                answer = self._speculator.request(
                    ids, config, self._processors(asked), ServedAnswer
                )
                rounds = asked.options.include_rounds
                found.append(answer.prepared(len(found), asked.top, rounds))
        return found

    def _prompts(self, asked: GenerationRequest) -> list[list[int]]:
        encode = self._speculator.encode
        self._check_text(asked)
        if isinstance(asked, ChatRequest):
            found = [encode([message.as_given() for message in asked.messages])]
        else:
            assert isinstance(asked, CompletionRequest)
            found = [encode(self._ids(prompt)) for prompt in asked.prompts]
        for ids in found:
            self._check_length(len(ids))
        return found

    def _ids(self, prompt: str | list[int]) -> list[int]:
        """A text as it is, without the chat template."""
        if not isinstance(prompt, str):
            return prompt
        ids = self._speculator.tokenizer(prompt)["input_ids"]
        if not ids:
            raise ContextError("The prompt is empty; write something to continue.")
        return ids

    def _check_text(self, asked: GenerationRequest) -> None:
        """Refuse what must be too long before it is split into tokens, which takes its time."""
        most = self._longest * self._most
        for text in asked.texts:
            if len(text) > most:
                raise _too_long(f"{len(text)} characters", f"{self._most} tokens")

    def _check_length(self, count: int) -> None:
        if count > self._most:
            raise _too_long(f"{count} tokens", str(self._most))

    @property
    def _most(self) -> int:
        """Tokens of a prompt."""
        context, limit = self._speculator.target.context_length, self._config.max_prompt_tokens
        return context - 1 if limit is None else min(limit, context - 1)

    @cached_property
    def _longest(self) -> int:
        """Characters that one token spells at most: a vocabulary has one or more for each."""
        return max(map(len, self._speculator.tokenizer.get_vocab()))

    def _config_of(self, asked: GenerationRequest, prompt: int, seed: int) -> GenerationConfig:
        limit, wanted = self._config.max_output_tokens, asked.most_tokens
        if wanted is not None and wanted > limit:
            words = f"{wanted} tokens are more than the {limit} of one answer: ask for fewer."
            raise ApiError(400, words, param="max_tokens")
        return GenerationConfig(
            max_new_tokens=wanted or min(limit, asked.unsaid_tokens or limit),
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=max(0, asked.top_k),
            min_p=asked.min_p,
            frequency_penalty=asked.frequency_penalty,
            presence_penalty=asked.presence_penalty,
            repetition_penalty=asked.repetition_penalty,
            seed=seed,
            stop_strings=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop),
            ignore_eos=asked.ignore_eos,
        )

    def _processors(self, asked: GenerationRequest) -> list[Processor]:
        """Anew for every answer: a grammar has a state."""
        found: list[Processor] = []
        if asked.logit_bias:
            found.append(Bias(self._biases(asked.logit_bias)))
        schema = _schema(asked)
        if schema is not None:
            found.append(self.grammars.of_schema(schema))
        return found

    def _biases(self, given: dict[str, float]) -> dict[int, float]:
        most, found = self._speculator.target.vocab_size, {}
        for name, value in given.items():
            # int() takes more than digits: blanks, signs, underscores
            if not (name.isascii() and name.isdigit() and len(name) < 10 and int(name) < most):
                raise ApiError(
                    400,
                    f"logit_bias names {name[:40]!r}, which is no token of this model: "
                    f"give ids below {most}.",
                    param="logit_bias",
                )
            found[int(name)] = value
        return found


def _too_long(given: str, most: str) -> ApiError:
    words = f"The prompt has {given} and this server reads {most}: shorten it."
    return ApiError(400, words, code="context_length_exceeded")


def check_count(count: int, most: int) -> None:
    """Raises :class:`ApiError` for more answers than one request may have."""
    if count > most:
        words = f"{count} answers are more than the {most} of one request: ask for fewer."
        raise ApiError(400, words, param="n")


def _schema(asked: GenerationRequest) -> dict[str, Any] | None:
    """The JSON schema of the answer, if there is one."""
    if asked.response_format is None or asked.response_format.type == "text":
        return None
    if asked.response_format.json_schema is None:
        return {"type": "object"}
    return asked.response_format.json_schema.schema_
