"""What a model's ``generation_config.json`` asks for and our own interface does not heed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["unheeded", "warn_of_unheeded"]

_log = logging.getLogger("specblock")

# They change greedy answers, with the values that ask for nothing. How to sample is for the user
# to say; where generation ends is heeded.
_ASKS = {
    "bad_words_ids": (), "begin_suppress_tokens": (), "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,), "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "guidance_scale": (1.0,),
    "min_length": (0,), "min_new_tokens": (0,), "no_repeat_ngram_size": (0,), "num_beams": (1,),
    "penalty_alpha": (0.0,), "repetition_penalty": (1.0,), "sequence_bias": (),
    "suppress_tokens": (), "watermarking_config": (),
}  # fmt: skip


def unheeded(config: GenerationConfig) -> dict[str, object]:
    """The settings of a model's own configuration that would change its greedy answers."""
    found = {name: getattr(config, name, None) for name in _ASKS}
    return {
        name: value
        for name, value in found.items()
        if value not in (None, [], {}) and value not in _ASKS[name]
    }


def warn_of_unheeded(config: GenerationConfig, model: str) -> None:
    """Say what a user of the model has to ask for, if there is anything."""
    asked = ", ".join(f"{name}={value}" for name, value in unheeded(config).items())
    if asked:
        _log.warning(
            "The generation_config of %s asks for %s. Here your settings count alone: give what "
            "there is an option for, or call the model's generate with custom_generate.",
            model or "this model", asked,
        )  # fmt: skip
