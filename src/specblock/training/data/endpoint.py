"""Answers from any OpenAI-compatible chat endpoint (vLLM, SGLang, llama.cpp, our own server).

The endpoint returns text; its tokens are those of the target's chat template around it.
Connection, rate limits and server errors are retried by the ``openai`` package. A prompt that the
server refuses is counted and left out; a server that is gone ends the run, nothing lost.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specblock.errors import SpecBlockError
from specblock.target.chat.template import naming
from specblock.training.data import turns
from specblock.training.data.chat_mask import masked_answer
from specblock.training.data.prompts import Prompt
from specblock.training.data.shards import AnswerStore
from specblock.training.data.turns import Progress, Turn, answer_row, keyed_seed, turn_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI


@dataclass(frozen=True)
class EndpointConfig:
    """Where answers come from and how they are drawn; sampling as in ``RegenerateConfig``."""

    url: str
    model: str
    key: str = "none"
    concurrency: int = 32
    retries: int = 5
    timeout: float = 600.0  # seconds for one answer
    max_new_tokens: int = 256
    max_prompt_tokens: int | None = 256
    temperatures: tuple[tuple[float, float], ...] = turns.TEMPERATURES
    top_p: float = 0.95
    shard_rows: int = 20_000
    seed: int = 0


def regenerate_at(
    prompts: list[Prompt],
    out: Path,
    tokenizer,
    config: EndpointConfig,
    on_answer: Callable[[Progress], None] = lambda progress: None,
    max_seconds: float | None = None,
) -> int:
    """Append the endpoint's answer to every turn without one; returns how many there were.

    Rows and resumption as in :func:`specblock.training.data.regenerate.regenerate`.

    Raises:
        SpecBlockError: ``openai`` is missing, the endpoint is lost or refuses everything, or the
            disk is full; the answers so far are kept.
    """
    with AnswerStore(out, config.shard_rows, turns.multi_turn_ids(prompts)) as store:
        run = _Run(prompts, store, tokenizer, config, on_answer, max_seconds)
        asyncio.run(run.all())
        if run.refused and not store.finished:
            raise SpecBlockError(
                f"{config.url} refused every prompt ({run.refusal}): check --endpoint-model."
            )
    return run.progress.answers


class _Run:
    """One pass over the conversations by ``concurrency`` workers that share a queue."""

    def __init__(self, prompts, store, tokenizer, config, on_answer, max_seconds):
        self.store, self.tokenizer, self.config = store, tokenizer, config
        self.on_answer, self.max_seconds = on_answer, max_seconds
        self.queue = iter(prompts)
        self.progress = Progress(turns.missing_answers(prompts, store))
        self.started = time.monotonic()
        self.refused, self.refusal = 0, ""

    async def all(self) -> None:
        async with self._client() as client:
            workers = [
                asyncio.create_task(self._work(client)) for _ in range(self.config.concurrency)
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    def _client(self) -> AsyncOpenAI:
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise SpecBlockError(
                "Endpoints need the openai package: pip install 'specblock[train]'."
            ) from None
        return AsyncOpenAI(
            base_url=self.config.url,
            api_key=self.config.key,
            max_retries=self.config.retries,
            timeout=self.config.timeout,
        )

    async def _work(self, client: AsyncOpenAI) -> None:
        for prompt in self.queue:
            for number in range(1 + len(prompt.later)):
                if self.max_seconds is not None and self._seconds() > self.max_seconds:
                    return
                if self.store.has(prompt.id, number):
                    continue
                limit = self.config.max_prompt_tokens
                turn = turn_of(prompt, number, self.store, self.tokenizer, limit)
                row = None if turn is None else await self._ask(client, turn)
                if row is None:
                    break
                self.store.append([row])
                self.progress.answers += 1
                self.progress.tokens += len(row["answer_ids"])
                self.progress.seconds = self._seconds()
                self.on_answer(self.progress)

    async def _ask(self, client: AsyncOpenAI, turn: Turn) -> dict | None:
        """The answer's row; None for a prompt that the server refuses or answers with nothing."""
        import openai

        config = self.config
        heat = turns.temperature_of(turn.id, config.seed, config.temperatures)
        try:
            reply = await client.chat.completions.create(
                model=config.model,
                messages=turn.messages,
                temperature=heat,
                top_p=config.top_p if heat > 0 else 1.0,
                max_tokens=config.max_new_tokens,
                seed=keyed_seed(config.seed, turn),
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return self._refuse(_first_line(error))
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise SpecBlockError(
                f"{config.url} gave up answering ({_first_line(error)}): the answers so far are "
                f"in {self.store.path}; start again to go on once the endpoint is there."
            ) from error
        if isinstance(reply, str):
            raise SpecBlockError(
                f"{config.url} does not speak the chat API: its address mostly ends in /v1."
            )
        choice = reply.choices[0] if reply.choices else None
        text = (choice and choice.message.content) or ""
        if not text.strip():
            return self._refuse("an answer without text")
        stopped = choice.finish_reason == "stop"
        messages = [*turn.messages, {"role": "assistant", "content": text}]
        with naming(f"Conversation '{turn.id}', turn {turn.number}"):
            answer = masked_answer(self.tokenizer, messages, name=turn.id, stopped=stopped)
        answered = Turn(turn.id, turn.number, turn.messages, answer.prompt_ids)
        return answer_row(answered, answer.answer_ids, heat, stopped)

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        self.refusal = self.refusal or reason

    def _seconds(self) -> float:
        return time.monotonic() - self.started


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.rstrip(".")[:200]
