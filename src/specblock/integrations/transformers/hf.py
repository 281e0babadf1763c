"""The doorway for programs that call ``model.generate`` of transformers.

``model.generate(..., custom_generate=specblock.custom_generate, drafter=FOLDER)`` runs our loop
behind the usual arguments and returns what ``generate`` returns. ``docs/transformers.md`` says what
every argument does here.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import GenerateDecoderOnlyOutput, MaxLengthCriteria

from specblock.engine.speculator import Speculator
from specblock.engine.turns import turn_of
from specblock.errors import ConfigError
from specblock.integrations.transformers.kept import speculator_for
from specblock.integrations.transformers.row_request import RowRequest
from specblock.integrations.transformers.rows import Row, make_rows, split_filters, steps
from specblock.integrations.transformers.settings import (
    refuse,
    refuse_arguments,
    refuse_lengths,
    refuse_model,
    refuse_settings,
)
from specblock.target.architecture.verifiable import check_verifiable
from specblock.tree.sampling import SamplingParams

_log = logging.getLogger("specblock")


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
    stop_strings: str | list[str] | None = None,
    tokenizer=None,
    **model_kwargs,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Generate for ``input_ids [batch, length]``; returns the prompts with their continuations.

    Sequences of a batch are decoded together and padded to the longest. Without
    ``seed`` one is drawn from PyTorch's generator, so ``torch.manual_seed`` governs sampling; row
    r of the batch samples with ``seed + r``.

    Args:
        drafter: as in :func:`specblock.load`; its tokenizer's fingerprint is not checked.
        stop_strings, tokenizer: without a tokenizer it is the one in the model's folder.

    Raises:
        ConfigError: for what would change the output and is not supported, by its name.
        ContextError: a prompt is empty or too long. ModelError: the model's logits hold NaN.
    """
    streamer = _withheld("streamer") if streamer is None else streamer
    _refuse(model, input_ids, generation_config, logits_processor or [], synced_gpus, model_kwargs)
    criteria = list(stopping_criteria or ())
    if stop_strings:
        tokenizer = tokenizer or _withheld("tokenizer") or _tokenizer_of(model)
        criteria.append(StopStringCriteria(tokenizer, stop_strings))
    seed = int(torch.randint(0, 2**62, ())) if seed is None else seed
    processors, settings = list(logits_processor or ()), {"temperature": 0.0}
    if generation_config.do_sample:
        processors, settings = split_filters(processors, generation_config)
    mask = model_kwargs.get("attention_mask")
    rows = make_rows(model, input_ids, mask, generation_config, processors, criteria)
    room = min(
        (c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)),
        default=generation_config.max_length,
    )
    alone = streamer if len(rows) == 1 else None
    with turn_of(model):
        speculator = speculator_for(model, drafter)
        refuse_lengths(speculator.target.positions, mask)
        _write(speculator, [_request(speculator, row, settings, seed, room) for row in rows], alone)
        _say_what_ended_early(speculator, rows, room)
    return _returned(rows, generation_config, streamer)


def _refuse(
    model: nn.Module,
    input_ids: Tensor,
    config: GenerationConfig,
    processors: Sequence[Any],
    synced_gpus: bool,
    model_kwargs: dict[str, Any],
) -> None:
    check_verifiable(model)
    refuse_model(model)
    for name in ("assistant_model", "synced_gpus"):
        if _withheld(name):
            refuse(name)
    if synced_gpus:
        refuse("synced_gpus")
    refuse_arguments(input_ids, model_kwargs)
    refuse_settings(config, processors)


def _withheld(name: str) -> Any:
    """An argument of ``generate`` that it does not hand on to a callable; None where it was not
    given.

    A streamer would otherwise be told of the prompt, of nothing else, and never of the end: who
    reads from it would wait for ever. A tokenizer is taken out of the arguments and dropped; who
    called ``generate`` (its decorator) still has it.
    """
    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    if frame is None:
        return None
    given = frame.f_back.f_locals.get("kwargs", {}) if frame.f_back else {}
    return frame.f_locals.get(name, given.get(name))


def _request(
    speculator: Speculator, row: Row, settings: dict[str, float], seed: int, longest: int
) -> RowRequest:
    """What the engine is asked for: the row, at most ``longest`` tokens with its prompt."""
    process = (row.process,) if row.processes else ()
    seed = (seed + row.index) % 2**64
    params = SamplingParams(**settings, seed=seed, processors=process)
    return RowRequest(row, params, max(1, longest - row.ids.numel()), speculator.seats)


def _write(speculator: Speculator, requests: list[RowRequest], streamer: Any) -> None:
    """Write all rows to their ends; ``streamer`` gets each token as it comes."""
    with ExitStack() as stack:
        handles = [speculator.engine.add(request).until_closed(stack) for request in requests]
        for tokens in chain.from_iterable(handles):
            for token in tokens if streamer is not None else ():
                streamer.put(torch.tensor([token]))


def _say_what_ended_early(speculator: Speculator, rows: list[Row], longest: int) -> None:
    if any(len(row.new) < longest - row.ids.numel() and not row.stopped for row in rows):
        _log.warning(
            "The model's context of %d tokens is full: the answer ends there.",
            speculator.target.context_length,
        )


def _returned(
    rows: list[Row], config: GenerationConfig, streamer: Any
) -> Tensor | GenerateDecoderOnlyOutput:
    """What generate returns; a streamer of a whole batch is shown it step by step."""
    pad = _pad_token(config)
    written = [torch.cat((row.ids, row.ids.new_tensor(row.new))) for row in rows]
    # int64 as generate's, whatever the prompt is
    sequences = torch.nn.utils.rnn.pad_sequence(written, batch_first=True, padding_value=pad).long()
    if streamer is not None:
        for step in sequences[:, rows[0].ids.numel() :].T if len(rows) > 1 else ():
            streamer.put(step.cpu())
        streamer.end()
    if not config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=steps(rows, "scores", pad) if config.output_scores else None,
        logits=steps(rows, "logits", pad) if config.output_logits else None,
    )


def _pad_token(config: GenerationConfig) -> int:
    """As in generate: the pad token, or else the first end token."""
    for token in (config.pad_token_id, config.eos_token_id):
        if token is not None:
            return int(torch.as_tensor(token).flatten()[0])
    return 0


def _tokenizer_of(model) -> Any:
    """The tokenizer in the model's folder. Raises ConfigError where there is none."""
    name = getattr(model, "name_or_path", "")
    try:
        if name:
            return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        _log.info("no tokenizer in %s: %s", name, error)
    raise ConfigError(
        "stop_strings need a tokenizer, and the model's folder has none: give tokenizer=tokenizer."
    )
