"""Does a drafter belong to a target? Shapes, and a fingerprint of the tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from specblock.drafters.config import StoredConfig
from specblock.errors import CheckpointError

__all__ = ["check_fits", "tokenizer_fingerprint"]

_DIGITS = 16  # hexadecimal digits kept: 64 bits, to tell tokenizers apart, not to resist attack


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A short stable hash of a tokenizer's vocabulary: every token with its id, added ones too.

    The same in every process and on every platform. Merges, normalisation and chat templates do
    not enter: a drafter sees ids alone, and what an id means is what must agree.
    """
    vocabulary = dict(tokenizer.get_vocab())
    if hasattr(tokenizer, "get_added_vocab"):
        vocabulary.update(tokenizer.get_added_vocab())
    entries = sorted((index, token) for token, index in vocabulary.items())
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_DIGITS]


def check_fits(
    config: StoredConfig,
    *,
    hidden_size: int,
    vocab_size: int,
    target_layers: int,
    fingerprint: str,
    target_name: str,
) -> None:
    """Refuse a drafter that was made for another target.

    Args:
        hidden_size, vocab_size, target_layers: the target's; ``vocab_size`` counts the rows of
            its input embeddings.
        fingerprint: :func:`tokenizer_fingerprint` of its tokenizer; empty if there is none. It is
            not compared where it or the recorded one is empty.
        target_name: for the message.

    Raises:
        CheckpointError: naming what differs, each with the drafter's and the target's value.
    """
    pairs = [
        ("hidden size", config.hidden_size, hidden_size),
        ("vocabulary size", config.vocab_size, vocab_size),
        ("number of layers", config.target_layers, target_layers),
    ]
    if config.tokenizer_fingerprint and fingerprint:
        pairs.append(("tokenizer fingerprint", config.tokenizer_fingerprint, fingerprint))
    wrong = [
        f"{what} {drafter} for the drafter but {target} for the target"
        for what, drafter, target in pairs
        if drafter != target
    ]
    if wrong:
        origin = f", it was made for {config.target_name}" if config.target_name else ""
        raise CheckpointError(
            f"The drafter does not fit {target_name or 'this target'}{origin}: {'; '.join(wrong)}. "
            "Choose the drafter of this target, or decode without one."
        )
