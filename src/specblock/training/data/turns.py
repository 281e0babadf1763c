"""One question to the target: a turn, with the target's own answers to the turns before it."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

from specblock.target.chat.template import chat_tokens, naming
from specblock.training.data.conversation import Message
from specblock.training.data.prompts import Prompt
from specblock.training.data.shards import AnswerStore

# (value, share): the authors' scripts; shares sum to 1
TEMPERATURES = ((0.0, 0.4), (0.3, 0.1), (0.5, 0.1), (0.7, 0.1), (1.0, 0.3))


@dataclass(frozen=True)
class Turn:
    """Turn ``number`` (from 0) of conversation ``id``: what is asked, as messages and tokens."""

    id: str
    number: int
    messages: list[Message]
    ids: list[int]


@dataclass
class Progress:
    """Answers and tokens drawn by this run, of how many; ``seconds`` since it started."""

    of: int
    answers: int = 0
    tokens: int = 0
    seconds: float = field(default=0.0)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        return (self.of - self.answers) * self.seconds / max(1, self.answers)


def temperature_of(prompt_id: str, seed: int, temperatures: tuple[tuple[float, float], ...]):
    """The conversation's temperature: a draw keyed by (seed, id), the same on every run."""
    values, shares = zip(*temperatures, strict=True)
    return random.Random(f"{seed}:{prompt_id}").choices(values, shares)[0]


def keyed_seed(seed: int, turn: Turn) -> int:
    """A seed in [0, 2**31) for the answer of a turn, whenever it is drawn."""
    key = f"{seed}\n{turn.id}#{turn.number}"
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def multi_turn_ids(prompts: list[Prompt]) -> frozenset[str]:
    """Ids of the conversations whose answers are needed again."""
    return frozenset(prompt.id for prompt in prompts if prompt.later)


def missing_answers(prompts: list[Prompt], store: AnswerStore) -> int:
    """How many answers are still to be drawn, if no conversation has to end early."""
    return sum(
        not store.has(prompt.id, number)
        for prompt in prompts
        for number in range(1 + len(prompt.later))
    )


def turn_of(
    prompt: Prompt, number: int, store: AnswerStore, tokenizer, max_tokens: int | None
) -> Turn | None:
    """Turn ``number`` of a conversation, which holds the target's answers to the turns before.

    None where there is no such turn: the conversation has fewer, an earlier turn was never
    answered or its answer has no text, or the turn has more than ``max_tokens`` tokens.
    """
    if prompt.id in store.ended:
        return None
    if number == 0:
        return Turn(prompt.id, 0, prompt.messages, prompt.ids)
    if number > len(prompt.later):
        return None
    messages = list(prompt.messages)
    for earlier, group in enumerate(prompt.later[:number]):
        if (prompt.id, earlier) not in store.finished:
            return None
        # as a chat client sends it back: text, not tokens
        text = tokenizer.decode(store.answer(prompt.id, earlier), skip_special_tokens=True)
        if not text.strip():
            return None
        messages += [{"role": "assistant", "content": text.strip()}, *group]
    with naming(f"Conversation '{prompt.id}', turn {number}"):
        ids = chat_tokens(tokenizer, messages)
    if max_tokens is not None and len(ids) > max_tokens:
        return None
    return Turn(prompt.id, number, messages, ids)


def answer_row(
    turn: Turn,
    answer_ids: list[int],
    temperature: float | None,
    stopped: bool,
    target: str | None = None,
) -> dict[str, Any]:
    """The row of an answer file; no temperature and no target where it is not known."""
    return {
        "id": turn.id,
        "turn": turn.number,
        "prompt_ids": turn.ids,
        "answer_ids": answer_ids,
        "temperature": temperature,
        "finish_reason": "stop" if stopped else "length",
        **({} if target is None else {"target": target}),
    }
