"""Which target is this? What its weights hold; shapes and a fingerprint of the tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from specblock.drafters.config import StoredConfig
from specblock.errors import CheckpointError

__all__ = ["check_fits", "content_digest", "target_digest", "tokenizer_fingerprint"]

_DIGITS = 16  # hexadecimal digits kept: 64 bits, to tell tokenizers apart, not to resist attack


_SAMPLED_ROWS = 16  # of every matrix; a few milliseconds for a small model
# what a config says about the computation and shapes do not
_COMPUTED = (
    "model_type", "hidden_act", "hidden_activation", "num_attention_heads", "num_key_value_heads",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_parameters", "sliding_window",
    "layer_types", "tie_word_embeddings",
)  # fmt: skip


def target_digest(model: nn.Module) -> str:
    """What a target is by content, whatever it is called and wherever its folder lies.

    Sees what the config says about the computation, the names and shapes of all weights, and the
    values of every vector and of 16 rows of every matrix: training, merged adapters and
    quantisation change these. An edit of single other rows is not seen. Values count as bfloat16,
    so that a model in float32 and in bfloat16 are the same; in float16 it is another where
    that rounds otherwise.
    """
    config = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    computed = {name: getattr(config, name, None) for name in _COMPUTED}
    text = json.dumps(computed, sort_keys=True, default=str)
    return hashlib.sha256((text + content_digest(model)).encode()).hexdigest()[:_DIGITS]


def content_digest(module: nn.Module) -> str:
    """What the weights of a network are, as far as :func:`target_digest` looks."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.is_meta or not parameter.numel():  # lies elsewhere
            continue
        rows = parameter.detach()
        if rows.dim() > 1:
            places = torch.linspace(0, len(rows) - 1, min(_SAMPLED_ROWS, len(rows)))
            rows = rows[places.long().to(rows.device)]
        if rows.is_floating_point():
            rows = rows.to(torch.bfloat16)
        digest.update(rows.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_DIGITS]


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
