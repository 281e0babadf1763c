"""The target answers every training prompt: the drafter learns what the target would say.

Answers are drawn at a mixture of temperatures (paper's scripts: 40 % greedy, 30 % at 1.0, the
rest between) and appended to a JSONL file as they are finished, so a killed run resumes where it
was: prompts that have an answer are skipped. Batches are made of prompts of similar length, and
finished sequences leave their batch.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specblock.errors import ModelError
from specblock.target import attention
from specblock.target.cache import PathCache
from specblock.target.linear import ROW_BUCKETS, RouteTable, route_linears
from specblock.target.masks import FULL, additive, attention_kinds
from specblock.target.model import text_config
from specblock.training.prompts import Prompt


@dataclass(frozen=True)
class RegenerateConfig:
    """How answers are drawn. Temperatures are (value, share) pairs; shares sum to 1."""

    max_new_tokens: int = 256
    batch_size: int = 64
    temperatures: tuple[tuple[float, float], ...] = (
        (0.0, 0.4),
        (0.3, 0.1),
        (0.5, 0.1),
        (0.7, 0.1),
        (1.0, 0.3),
    )
    top_p: float = 0.95
    candidates: int = 128  # the nucleus is cut out of so many most probable tokens
    compact_below: float = 0.75  # finished sequences leave when fewer than this share goes on
    window: int = 2048  # prompts sorted by length at a time, so that the file stays mixed
    seed: int = 0


def temperature_of(prompt_id: str, config: RegenerateConfig) -> float:
    """The prompt's temperature: a draw keyed by (seed, prompt id), the same on every run."""
    values, shares = zip(*config.temperatures, strict=True)
    return random.Random(f"{config.seed}:{prompt_id}").choices(values, shares)[0]


def batches(prompts: list[Prompt], config: RegenerateConfig) -> Iterator[list[Prompt]]:
    """Batches of similar length, window by window in the order given."""
    for start in range(0, len(prompts), config.window):
        window = sorted(prompts[start : start + config.window], key=lambda p: len(p.ids))
        for first in range(0, len(window), config.batch_size):
            yield window[first : first + config.batch_size]


def draw_batch(
    logits: Tensor, temperatures: Tensor, config: RegenerateConfig, generator: torch.Generator
) -> Tensor:
    """One token per row of ``logits [B, V]``; temperature 0 is the arg-max. Returns int64 [B]."""
    tokens = logits.argmax(-1)
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
    prompts: list[Prompt],
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
            past_key_values=cache,
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


def finished_ids(path: Path) -> set[str]:
    """Ids that have an answer already; a half-written last line is cut off the file."""
    if not path.exists():
        return set()
    raw = path.read_bytes()
    end = raw.rfind(b"\n") + 1
    if end < len(raw):
        with path.open("r+b") as file:
            file.truncate(end)
    return {json.loads(line)["id"] for line in raw[:end].splitlines()}


def regenerate(
    model,
    prompts: list[Prompt],
    out: Path,
    eos: frozenset[int],
    config: RegenerateConfig,
    on_batch: Callable[[dict], None] = lambda progress: None,
    max_seconds: float | None = None,
) -> int:
    """Append an answer for every prompt without one; returns the number of new answers.

    Rows: ``{"id", "prompt_ids", "answer_ids", "temperature", "finish_reason"}``.

    Raises :class:`ModelError` for targets with sliding-window layers.
    """
    if attention_kinds(text_config(model)) != (FULL,):
        raise ModelError(
            "Answers are drawn in padded batches, which sliding-window layers cannot take; "
            "choose a target with full attention in every layer."
        )
    done = finished_ids(out)
    generator = torch.Generator(device=model.device).manual_seed(config.seed + len(done))
    todo = [p for p in prompts if p.id not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    started, tokens, answered = time.monotonic(), 0, 0
    with out.open("a", encoding="utf-8") as file:
        for batch in batches(todo, config):
            temperatures = [temperature_of(p.id, config) for p in batch]
            answers = answer_batch(model, batch, temperatures, eos, config, generator)
            for prompt, heat, answer in zip(batch, temperatures, answers, strict=True):
                row = {
                    "id": prompt.id,
                    "prompt_ids": prompt.ids,
                    "answer_ids": answer,
                    "temperature": heat,
                    "finish_reason": "stop" if answer[-1] in eos else "length",
                }
                file.write(json.dumps(row) + "\n")
            file.flush()
            tokens += sum(map(len, answers))
            answered += len(batch)
            seconds = time.monotonic() - started
            on_batch({"answers": answered, "of": len(todo), "tokens": tokens, "seconds": seconds})
            if max_seconds is not None and seconds > max_seconds:
                break
    return answered
