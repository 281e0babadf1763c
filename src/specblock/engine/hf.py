"""The doorway for programs that call ``model.generate`` of transformers.

``model.generate(..., custom_generate=specblock.custom_generate, drafter=FOLDER)`` runs our loop
behind the usual arguments and returns what ``generate`` returns.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import EosTokenCriteria, GenerateDecoderOnlyOutput, MaxLengthCriteria

from specblock.engine.loading import assemble, find_drafter
from specblock.engine.rounds import decode
from specblock.engine.speculator import Speculator
from specblock.engine.statistics import GenerationStats
from specblock.errors import ConfigError
from specblock.tree.sampling import SamplingParams

_KNOWN_PROCESSORS = (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
_speculators: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def custom_generate(
    model,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: GenerationConfig | None = None,
    synced_gpus: bool = False,
    streamer=None,
    drafter: str | Path | None = "auto",
    seed: int | None = None,
    **model_kwargs,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Generate for ``input_ids [batch, length]``; returns the prompts with their continuations.

    Sequences of a batch are decoded one after the other and padded to the longest. Without
    ``seed`` one is drawn from PyTorch's generator, so ``torch.manual_seed`` governs sampling.

    Args:
        drafter: a drafter's folder, ``"lookup"``, ``"auto"`` or None, as in
            :func:`specblock.load`. A drafter's tokenizer fingerprint is not checked: ``generate``
            keeps the tokenizer to itself.

    ``generate`` of transformers does not hand a ``streamer`` on to callables; where one arrives it
    is served after each sequence. Use :meth:`specblock.Speculator.stream` to see tokens come.

    Raises :class:`ConfigError` for beams, several return sequences, custom logits processors.
    """
    _refuse_unsupported(generation_config, logits_processor, synced_gpus)
    speculator = _speculator_for(model, drafter)
    params = _sampling(generation_config, seed)
    mask = model_kwargs.get("attention_mask")
    rows = []
    for row, ids in enumerate(input_ids):
        prompt = ids if mask is None else ids[mask[row].bool()]
        padding = ids[: ids.numel() - prompt.numel()]
        room = generation_config.max_length - ids.numel()
        ends = _end_tokens(generation_config)
        new = _continue(speculator, prompt.tolist(), params, room, ends, stopping_criteria)
        if streamer is not None:
            for token in new:
                streamer.put(torch.tensor([token]))
        rows.append(torch.cat((padding, prompt, prompt.new_tensor(new))))
    if streamer is not None:
        streamer.end()
    sequences = _pad(rows, generation_config)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)
    return sequences


def _continue(
    speculator: Speculator,
    prompt: list[int],
    params: SamplingParams,
    room: int,
    ends: frozenset[int],
    criteria: StoppingCriteriaList | None,
) -> list[int]:
    """New tokens of one sequence, up to the first token at which a criterion holds."""
    asked = [c for c in criteria or () if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)]
    new: list[int] = []
    rounds = decode(
        speculator.target,
        speculator.drafter,
        speculator.budget_for(params),
        prompt,
        params,
        room,
        GenerationStats(),
        copies=speculator.copies,
    )
    for tokens in rounds:
        for token in tokens:
            new.append(token)
            if token in ends:
                return new
            if asked:
                so_far = torch.tensor([prompt + new], device=speculator.target.device)
                if any(bool(criterion(so_far, None).all()) for criterion in asked):
                    return new
    return new


def _end_tokens(config: GenerationConfig) -> frozenset[int]:
    ends = config.eos_token_id
    return frozenset(() if ends is None else (ends,) if isinstance(ends, int) else ends)


def _speculator_for(model, drafter: str | Path | None) -> Speculator:
    """One speculator per model and drafter, kept as long as the model lives."""
    name = "none" if drafter is None else str(drafter)
    kept = _speculators.setdefault(model, {})
    if name not in kept:
        folder = find_drafter(getattr(model, "name_or_path", ""), drafter)
        kept[name] = assemble(model, None, folder)
        kept[name].target.positions.allow_any_length()  # as generate does
    return kept[name]


def _sampling(config: GenerationConfig, seed: int | None) -> SamplingParams:
    if seed is None:
        seed = int(torch.randint(0, 2**62, ()))
    penalty = config.repetition_penalty or 1.0
    if not config.do_sample:
        return SamplingParams(repetition_penalty=penalty, seed=seed)
    return SamplingParams(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_k=config.top_k or 0,
        top_p=1.0 if config.top_p is None else config.top_p,
        min_p=config.min_p or 0.0,
        repetition_penalty=penalty,
        seed=seed,
    )


def _refuse_unsupported(
    config: GenerationConfig, processors: LogitsProcessorList | None, synced_gpus: bool
) -> None:
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1 or synced_gpus:
        raise ConfigError(
            "SpecBlock generates one sequence per prompt on one device: leave num_beams, "
            "num_return_sequences and synced_gpus at their defaults."
        )
    odd = [type(p).__name__ for p in processors or () if not isinstance(p, _KNOWN_PROCESSORS)]
    if odd:
        raise ConfigError(
            f"SpecBlock cannot apply {', '.join(odd)} along the paths of a tree; use temperature, "
            "top_k, top_p, min_p and repetition_penalty, or plain generate."
        )


def _pad(rows: list[Tensor], config: GenerationConfig) -> Tensor:
    longest = max(row.numel() for row in rows)
    fill = config.pad_token_id if config.pad_token_id is not None else 0
    padded = [torch.nn.functional.pad(row, (0, longest - row.numel()), value=fill) for row in rows]
    return torch.stack(padded)
