"""The target answers every training prompt: the drafter learns what the target would say.

Answers are drawn at a mixture of temperatures (paper's scripts: 40 % greedy, 30 % at 1.0, the
rest between) and appended to shards as they are finished, so a killed run resumes where it was.
Batches are made of prompts of similar length, and finished sequences leave their batch. Later
turns of a conversation are asked with the target's own answers to the earlier ones.

Batches are a function of the prompts and the settings alone, and their draws are keyed by the
ids in them: an answer is the same wherever the run was cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from specblock.drafters.fingerprint import target_digest
from specblock.errors import ModelError
from specblock.kernels.linear import route_linears
from specblock.kernels.route_table import ROW_BUCKETS, RouteTable
from specblock.target import attention
from specblock.target.architecture.structure import cache_argument, forward_of, text_config
from specblock.target.architecture.verifiable import check_verifiable
from specblock.target.cache import PathCache
from specblock.target.masks import FULL, additive, attention_kinds
from specblock.training.data import turns
from specblock.training.data.prompts import Prompt, check_ids
from specblock.training.data.shards import AnswerStore, finished_ids
from specblock.training.data.turns import Progress, Turn, answer_row, keyed_seed, turn_of
from specblock.tree.sampling import NoPossibleTokenError

__all__ = [
    "RegenerateConfig",
    "answer_batch",
    "draw_batch",
    "finished_ids",
    "prepare_target",
    "regenerate",
    "temperature_of",
]

Asked = TypeVar("Asked", Prompt, Turn)


@dataclass(frozen=True)
class RegenerateConfig:
    """How answers are drawn. Temperatures are (value, share) pairs; shares sum to 1."""

    max_new_tokens: int = 256
    max_prompt_tokens: int | None = None  # a conversation ends before a turn longer than this
    batch_size: int = 64
    temperatures: tuple[tuple[float, float], ...] = turns.TEMPERATURES
    top_p: float = 0.95
    candidates: int = 128  # the nucleus is cut out of so many most probable tokens
    compact_below: float = 0.75  # finished sequences leave when fewer than this share goes on
    window: int = 2048  # prompts sorted by length at a time, so that the file stays mixed
    shard_rows: int = 20_000
    seed: int = 0


def temperature_of(prompt_id: str, config: RegenerateConfig) -> float:
    """The prompt's temperature: a draw keyed by (seed, prompt id), the same on every run."""
    return turns.temperature_of(prompt_id, config.seed, config.temperatures)


def batches(asked: list[Asked], config: RegenerateConfig) -> Iterator[list[Asked]]:
    """Batches of similar length."""
    ordered = sorted(asked, key=lambda one: len(one.ids))
    for first in range(0, len(ordered), config.batch_size):
        yield ordered[first : first + config.batch_size]


def draw_batch(
    logits: Tensor, temperatures: Tensor, config: RegenerateConfig, generator: torch.Generator
) -> Tensor:
    """One token per row of ``logits [B, V]``; temperature 0 is the arg-max. Returns int64 [B].

    Raises :class:`ModelError` for NaN or +inf among them.
    """
    best, tokens = logits.max(-1)  # argmax, several times as fast on a CPU
    if not bool((best < torch.inf).all()):
        raise ModelError(str(NoPossibleTokenError()))
    sampled = temperatures.nonzero().flatten()
    if sampled.numel() == 0:
        return tokens
    scaled = logits[sampled].float() / temperatures[sampled, None]
    top, ids = scaled.topk(min(config.candidates, scaled.shape[-1]), dim=-1)
    probabilities = (top - scaled.logsumexp(-1, keepdim=True)).exp()
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= config.top_p, 0.0)
    choice = torch.multinomial(probabilities, 1, generator=generator)
    tokens[sampled] = ids.gather(-1, choice).flatten()
    return tokens


@torch.inference_mode()
def answer_batch(
    model,
    prompts: list[Prompt] | list[Turn],
    temperatures: list[float],
    eos: frozenset[int],
    config: RegenerateConfig,
    generator: torch.Generator,
) -> list[list[int]]:
    """Answers (token ids, end-of-turn included when reached) of left-padded ``prompts``."""
    device = model.device
    longest = max(len(p.ids) for p in prompts)
    pads = torch.tensor([longest - len(p.ids) for p in prompts], device=device)
    ids = torch.tensor([[0] * (longest - len(p.ids)) + p.ids for p in prompts], device=device)
    heat = torch.tensor(temperatures, device=device)
    cache = PathCache(text_config(model).num_hidden_layers, longest + config.max_new_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    for _ in range(config.max_new_tokens):
        rows, length = ids.shape[1], cache.length
        keys = torch.arange(length + rows, device=device)
        queries = torch.arange(length, length + rows, device=device)
        real = keys[None, None] >= pads[:, None, None]
        # a padded query would see nothing, and its softmax would be NaN: let it see itself
        itself = keys[None, None] == queries[None, :, None]
        visible = (keys[None, None] <= queries[None, :, None]) & real | itself
        mask = additive(visible[:, None], model.dtype)
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(queries[None] - pads[:, None]).clamp(min=0),
            **{cache_argument(forward_of(model)): cache},
            use_cache=True,
            logits_to_keep=1,
        )
        cache.advance(rows)
        tokens = draw_batch(output.logits[:, -1], heat, config, generator)
        drawn = tokens.tolist()
        for row, token in zip(active, drawn, strict=True):
            if not answers[row] or answers[row][-1] not in eos:
                answers[row].append(token)
        going = [i for i, row in enumerate(active) if answers[row][-1] not in eos]
        if not going:
            break
        if len(going) <= config.compact_below * len(active):
            keep = torch.tensor(going, device=device)
            active = [active[i] for i in going]
            pads, heat, tokens = pads[keep], heat[keep], tokens[keep]
            cache.select_batch(keep)
        ids = tokens[:, None]
    return answers


def prepare_target(model, tokenizer) -> frozenset[int]:
    """Make ``model`` fast at decoding batches; returns its end-of-turn tokens."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(attention.register())
    if model.device.type == "cpu" and model.dtype == torch.bfloat16:
        # in bf16 the default product re-orders the weights at every call
        linears = route_linears(model)
        blocked = RouteTable({linear.shape: ["blocked"] * len(ROW_BUCKETS) for linear in linears})
        for linear in linears:
            linear.use(blocked)
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    return frozenset([*ends, tokenizer.eos_token_id])


def regenerate(
    model,
    prompts: list[Prompt],
    out: Path,
    eos: frozenset[int],
    config: RegenerateConfig,
    on_batch: Callable[[Progress], None] = lambda progress: None,
    max_seconds: float | None = None,
    tokenizer=None,
) -> int:
    """Append an answer for every turn without one; returns the number of new answers.

    ``out`` is a ``.jsonl`` file or a folder of shards. Rows: ``{"id", "turn", "prompt_ids",
    "answer_ids", "temperature", "finish_reason", "target"}``. ``tokenizer`` renders later turns;
    it may be left out where no conversation has any.

    Raises:
        ModelError: the target has other layers than full attention.
        SpecBlockError: ``out`` has answers of another target, or a prompt has a token that this
            one does not know.
    """
    check_verifiable(model)
    if attention_kinds(text_config(model)) != (FULL,):
        raise ModelError(
            "Answers are drawn in padded batches, which sliding-window layers cannot take; "
            "choose a target with full attention in every layer."
        )
    started = time.monotonic()
    vocabulary, target = text_config(model).vocab_size, target_digest(model)
    remember = turns.multi_turn_ids(prompts)
    with AnswerStore(out, config.shard_rows, remember, target) as store:
        progress = Progress(turns.missing_answers(prompts, store))
        for batch in open_batches(prompts, store, tokenizer, config):
            for turn in batch:
                check_ids(turn.ids, vocabulary, f"Conversation '{turn.id}', turn {turn.number}")
            rows = answer_turns(model, batch, eos, config, target)
            new = [row for row in rows if not store.has(row["id"], row["turn"])]
            store.append(new)
            progress.answers += len(new)
            progress.tokens += sum(len(row["answer_ids"]) for row in new)
            progress.seconds = time.monotonic() - started
            on_batch(progress)
            if max_seconds is not None and progress.seconds > max_seconds:
                break
    return progress.answers


def open_batches(
    prompts: list[Prompt], store: AnswerStore, tokenizer, config: RegenerateConfig
) -> Iterator[list[Turn]]:
    """The batches that lack an answer, window by window and turn by turn.

    A batch with some answers comes whole, for its draws to be what they would have been.
    """
    for start in range(0, len(prompts), config.window):
        window = prompts[start : start + config.window]
        for number in range(1 + max(len(prompt.later) for prompt in window)):
            having = [prompt for prompt in window if number <= len(prompt.later)]
            if all(store.has(prompt.id, number) for prompt in having):
                continue
            limit = config.max_prompt_tokens
            asked = [turn_of(prompt, number, store, tokenizer, limit) for prompt in having]
            for batch in batches([turn for turn in asked if turn is not None], config):
                if not all(store.has(turn.id, number) for turn in batch):
                    yield batch


def answer_turns(
    model,
    batch: list[Turn],
    eos: frozenset[int],
    config: RegenerateConfig,
    target: str | None = None,
) -> list[dict]:
    """Rows of the answers to a batch; a function of the batch, the model and the settings."""
    generator = torch.Generator(device=model.device).manual_seed(keyed_seed(config.seed, batch))
    temperatures = [temperature_of(turn.id, config) for turn in batch]
    answers = answer_batch(model, batch, temperatures, eos, config, generator)
    return [
        answer_row(turn, answer, heat, answer[-1] in eos, target)
        for turn, answer, heat in zip(batch, answers, temperatures, strict=True)
    ]
