"""What an EAGLE-3 drafter is made of; stored as ``config.json`` beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from specblock.drafters.config import FEATURE_CONVENTION, StoredConfig
from specblock.drafters.layers import rope_type


@dataclass(frozen=True)
class Eagle3Config(StoredConfig):
    """Shape and wiring of the network (EAGLE-3, arXiv 2503.01840).

    The last two groups are departures, each off by default: those that our SpecBlock drafters make
    too, so that the two can be compared on equal terms, and those that published drafters make.
    """

    drafter_type: ClassVar[str] = "eagle3"

    # the target it belongs to
    hidden_size: int
    vocab_size: int
    target_layers: int  # decoder layers of the target
    feature_layers: tuple[int, ...]  # 0-based; convention: output of decoder layer i
    # the network
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    draft_vocab_size: int = 32000
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None  # transformers' entry of type linear or llama3
    # of the target's tokenizer (specblock.drafters.fingerprint); empty: not recorded
    tokenizer_fingerprint: str = ""
    target_name: str = ""
    feature_convention: str = FEATURE_CONVENTION
    # departures from the paper
    feature_norm: bool = False  # RMS norm on every feature layer before fc
    sink: bool = False  # a learned entry before position 0, for a layer that rests on one
    target_lm_head: bool = False  # lm_head is the target's rows of the draft vocabulary: not stored
    # departures of published drafters
    own_embeddings: bool = False  # embed_tokens is not the target's: stored
    qk_norm: bool = False  # an RMS norm over every head of queries and keys
    norm_before_residual: bool = False  # the residual is the condition as attention reads it
    norm_before_fc: bool = False  # one RMS norm over all features together
    norm_output: bool = False  # what is fed back is what the head reads: after the final norm

    def __post_init__(self) -> None:
        super().__post_init__()
        rope_type(self.rope_scaling or {})  # refuses what the network cannot do
