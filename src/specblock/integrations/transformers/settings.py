"""What the doorway makes of every setting of ``generate``: honoured, without effect, or refused.

A setting that is neither honoured nor harmless is refused by its name; none is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor

from specblock.errors import ConfigError
from specblock.target.positions import Positions

# Applied by transformers' own processors and criteria, or by the doorway.
HONOURED = frozenset({
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "do_sample",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "eos_token_id", "epsilon_cutoff",
    "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "max_length", "max_new_tokens", "max_time", "min_length", "min_new_tokens", "min_p",
    "no_repeat_ngram_size", "num_return_sequences", "output_logits", "output_scores",
    "pad_token_id", "remove_invalid_values", "renormalize_logits", "repetition_penalty",
    "return_dict_in_generate", "sequence_bias", "stop_strings", "suppress_tokens", "temperature",
    "top_h", "top_k", "top_p", "typical_p", "watermarking_config",
})  # fmt: skip

# Change no token: how the work is done, or what only a refused setting reads.
WITHOUT_EFFECT = frozenset({
    "_from_model_config", "assistant_confidence_threshold", "assistant_ensemble_weight",
    "assistant_lookbehind", "cache_config", "compile_config", "continuous_batching_config",
    "decoder_start_token_id", "disable_compile", "early_stopping", "length_penalty", "low_memory",
    "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "prefill_chunk_size", "target_lookbehind",
    "transformers_version", "use_cache",
})  # fmt: skip

# Refused, except for these values, which ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (),
    "cache_implementation": (
        *("dynamic", "dynamic_full", "offloaded", "static", "offloaded_static", "sliding_window"),
        *("hybrid", "hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked"),
    ),
    "constraints": (),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "force_words_ids": (),
    "guidance_scale": (1.0,),
    "is_assistant": (False,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "penalty_alpha": (0.0,),
    "prompt_lookup_num_tokens": (),
    "speculation_type": (),
    "token_healing": (False,),
    "use_mtp": (False,),
}

_INSTEAD = {
    "prompt_lookup_num_tokens": "drafter='lookup' drafts from the text, too",
    "assistant_model": "drafter= names what drafts here",
    "inputs_embeds": "give input_ids",
    "past_key_values": "give the whole text as input_ids",
}
# Arguments of the model's forward that generate prepares itself.
_PREPARED = frozenset({
    "attention_mask", "cache_position", "logits_to_keep", "position_ids", "return_dict",
    "use_cache",
})  # fmt: skip
_CACHES = ("past_key_values", "cache", "cache_params")


def refuse_settings(config: GenerationConfig, processors: LogitsProcessorList) -> None:
    """Raise :class:`ConfigError` that names the first setting that would change the output."""
    for name, harmless in REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value not in harmless:
            refuse(name, value)
    for processor in processors:
        if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
            refuse("guidance_scale", processor.guidance_scale)


def refuse_model(model: nn.Module) -> None:
    """Raise :class:`ConfigError` for a model that does not prepare its inputs itself: by prompts
    that were learned, say, which would be left out."""
    prepare = vars(model).get("prepare_inputs_for_generation")
    if prepare is None:
        return
    # adapters of weights go through the same replacement, and prepare nothing
    owner = getattr(prepare, "__self__", None)
    adapter = getattr(owner, "active_peft_config", None)
    if adapter is None or adapter.is_prompt_learning:
        raise ConfigError(
            "SpecBlock's custom_generate does not support a model whose "
            "prepare_inputs_for_generation was replaced, as adapters of the prompt do: leave out "
            "custom_generate."
        )


def refuse_lengths(positions: Positions, mask: Tensor | None) -> None:
    """Raise :class:`ConfigError` for prompts of several lengths where a row's positions depend on
    the longest row of the batch."""
    if positions.independent or mask is None or len(mask) == 1 or bool((mask != 0).all()):
        return
    raise ConfigError(
        "This model's rotary embedding depends on the longest row of a batch, and SpecBlock writes "
        "every row as it is alone: generate for prompts of one length, or for one at a time."
    )


def refuse_arguments(input_ids: Tensor, arguments: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` that names a model input which the doorway does not pass on.

    Args:
        input_ids: [batch, length].
        arguments: what generate would hand to the model's forward.
    """
    for name, value in arguments.items():
        # what transformers fills in where nothing was given is empty
        empty = isinstance(value, dict | list | tuple) and not value
        if value is None or value is False or empty or name in _PREPARED:
            continue
        if name in _CACHES:
            # generate makes an empty one for every call, and marks one that is given to it
            if getattr(value, "_is_user_defined", False) or value.get_seq_length():
                refuse("past_key_values")
            continue
        refuse(name)
    mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
    if mask is not None and mask.shape != input_ids.shape:
        raise ConfigError(
            f"attention_mask is {[*mask.shape]} and input_ids {[*input_ids.shape]}: give one "
            "entry for every token."
        )
    if mask is not None and not bool((mask[:, -1] != 0).all()):
        raise ConfigError(
            "A row of attention_mask ends with padding, which would stand before the answer: pad "
            "on the left, with padding_side='left' in the tokenizer."
        )
    if positions is not None and not _usual(positions, mask):
        refuse("position_ids")


def _usual(positions: Tensor, mask: Tensor | None) -> bool:
    """Whether positions count the tokens that the mask shows, from 0."""
    if mask is None:
        counted = torch.arange(positions.shape[-1], device=positions.device)
        return bool((positions == counted).all())
    counted = (mask.long().cumsum(-1) - 1)[mask != 0]
    return positions.shape == mask.shape and bool((positions[mask != 0] == counted).all())


def refuse(name: str, value: Any = None) -> None:
    """Raise :class:`ConfigError` for a setting or an argument of this name."""
    given = name if value is None else f"{name}={value!r}"
    instead = _INSTEAD.get(name, "leave it out, or leave out custom_generate")
    raise ConfigError(f"SpecBlock's custom_generate does not support {given}: {instead}.")
