"""Logits processors and stopping criteria that are given once and serve several texts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

from transformers import PrefixConstrainedLogitsProcessor, SynthIDTextWatermarkLogitsProcessor

from specblock.errors import ConfigError

__all__ = ["one_for_each"]


def one_for_each(rows: int, things: Sequence[Any], model: Any) -> list[list[Any]]:
    """Processors or criteria for every row: the same ones, except for what may keep a state.

    Every row is a text of its own, and a state of one must not reach another; transformers' own
    keep none, except for a watermark. A single row gets the things themselves.

    Raises ConfigError for a state that cannot be copied.
    """
    if rows == 1:
        return [list(things)]
    return [[_own(thing, row, model) for thing in things] for row in range(rows)]


def _own(thing: Any, row: int, model: Any) -> Any:
    if isinstance(thing, PrefixConstrainedLogitsProcessor):
        allowed = thing._prefix_allowed_tokens_fn
        return PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)
    watermark = isinstance(thing, SynthIDTextWatermarkLogitsProcessor)
    if type(thing).__module__.startswith("transformers.") and not watermark:
        return thing
    try:
        return copy.deepcopy(thing, {id(model): model})
    except (TypeError, RuntimeError, copy.Error, pickle.PickleError) as error:
        raise ConfigError(
            f"{type(thing).__name__} cannot be copied for each row of a batch ({error}): generate "
            "for one prompt at a time, or give it a __deepcopy__."
        ) from None
