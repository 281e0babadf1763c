"""A Speculator without a model: its answer is a fixed function of the prompt's length."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from specblock.config import GenerationConfig

WORDS = 50


@dataclass(frozen=True)
class FakeStats:
    rounds: int
    new_tokens: int
    accepted_length: float
    seconds: float
    prefill_seconds: float
    draft_seconds: float
    verify_seconds: float
    speculative_rounds: int = 0
    drafted_nodes: int = 0
    accepted_by_depth: tuple[int, ...] = ()
    rounds_by_nodes: dict[int, int] = field(default_factory=dict)

    @property
    def round_tokens(self):
        return self.accepted_length * self.rounds

    @property
    def tokens_per_second(self):
        return self.new_tokens / self.seconds

    @property
    def decode_tokens_per_second(self):
        return (self.new_tokens - 1) / (self.seconds - self.prefill_seconds)


@dataclass(frozen=True)
class FakeGeneration:
    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    stats: FakeStats


class FakeTokenizer:
    """A token is the length of a word, below WORDS."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, messages, **options):
        return " ".join(message["content"] for message in messages)

    def __call__(self, text):
        return {"input_ids": [len(word) % WORDS for word in text.split()]}


class FakeTarget:
    """Logits that prefer ``answer_token`` by ``gap`` over the next id."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, gap):
        self.gap = gap
        self.ids = []

    def reset(self, capacity):
        self.ids = []

    def prefill(self, ids):
        self.ids += ids.tolist()

    def verify(self, tree):
        self.ids += tree.tokens.tolist()
        logits = torch.full((1, WORDS), -20.0)
        wanted = answer_token(len(self.ids))
        logits[0, wanted] = 5.0
        logits[0, (wanted + 1) % WORDS] = 5.0 - self.gap
        return SimpleNamespace(logits=logits)


def answer_token(position):
    return (7 * position + 3) % WORDS


@dataclass
class FakeSpeculator:
    """Plain decoding takes 10 ms a token, the drafter makes it ``speedup`` times as fast."""

    speedup: float = 2.0
    accepted_length: float = 2.5
    gap: float = 5.0
    drafter: object | None = field(default_factory=object)
    adaptation: None = None
    calls: list = field(default_factory=list)
    encoded: list = field(default_factory=list)
    alter: object | None = None  # changes a SpecBlock answer: (token_ids, finish) -> the same
    error: Exception | None = None
    interrupt_after: int | None = None

    def __post_init__(self):
        self.tokenizer = FakeTokenizer()
        self.target = FakeTarget(self.gap)
        self.costs = SimpleNamespace(
            to_dict=lambda: {
                "target": {1: 0.05, 8: 0.06},
                "draft_first": {1: 0.004},
                "draft_next": {8: 0.005},
                "overhead": 0.001,
            }
        )

    def encode(self, messages):
        self.encoded.append([message["content"] for message in messages])
        return [len(message["content"]) % WORDS for message in messages] + [1]

    def generate(self, prompt, generation_config=None, *, use_drafter=True, **kwargs):
        config = generation_config or GenerationConfig(**kwargs)
        self.calls.append((prompt, config, use_drafter))
        if self.error is not None:
            raise self.error
        length = len(prompt)
        ids = [answer_token(length + i) for i in range(config.max_new_tokens)]
        finish = "length"
        if use_drafter and self.alter is not None:
            ids, finish = self.alter(ids, finish)
        count = len(ids)
        step = 0.01 / (self.speedup if use_drafter else 1.0)
        stats = FakeStats(
            rounds=round(count / self.accepted_length) if use_drafter else count,
            new_tokens=count,
            accepted_length=self.accepted_length if use_drafter else 1.0,
            seconds=0.1 + step * (count - 1),
            prefill_seconds=0.1,
            draft_seconds=0.001 * count if use_drafter else 0.0,
            verify_seconds=step * count / 2,
        )
        return FakeGeneration("".join(f"w{i} " for i in ids), ids, finish, length, stats)

    def stream(self, prompt, generation_config=None, *, use_drafter=True, **kwargs):
        whole = self.generate(prompt, generation_config, use_drafter=use_drafter, **kwargs)
        for index, token in enumerate(whole.token_ids):
            if index == self.interrupt_after:
                self.interrupt_after = None
                raise KeyboardInterrupt
            last = index == len(whole.token_ids) - 1
            yield SimpleNamespace(
                text=f"w{token} ",
                token_ids=[token],
                finish_reason=whole.finish_reason if last else None,
                stats=whole.stats if last else None,
            )
