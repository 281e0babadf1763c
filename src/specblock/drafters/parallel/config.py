"""What a parallel-heads drafter is made of; stored as ``config.json`` beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from specblock.drafters.config import FEATURE_CONVENTION, StoredConfig
from specblock.drafters.layers import rope_type
from specblock.errors import CheckpointError


@dataclass(frozen=True)
class ParallelConfig(StoredConfig):
    """Shape and wiring of the network: SpecBlock's input layer and decoder layers for the next
    token, and a residual block per further position as in Medusa (arXiv 2401.10774).

    The last group are the departures that our SpecBlock drafters make too, each off by default.
    """

    drafter_type: ClassVar[str] = "parallel"

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
    num_hidden_layers: int = 2
    positions: int = 4  # K, predicted at once
    draft_vocab_size: int = 32000
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None  # transformers' entry of type linear or llama3
    # of the target's tokenizer (specblock.drafters.fingerprint); empty: not recorded
    tokenizer_fingerprint: str = ""
    target_name: str = ""
    feature_convention: str = FEATURE_CONVENTION
    # departures
    feature_norm: bool = False  # RMS norm on every feature layer before condition_proj
    sink: bool = False  # a learned entry before position 0, for layers that rest on one
    target_lm_head: bool = False  # lm_head is the target's rows of the draft vocabulary: not stored
    qkv_bias: bool = (
        False  # biases on queries, keys and values, for copies of layers that have them
    )
    qk_norm: bool = False  # norms on the heads of queries and keys, likewise

    def __post_init__(self) -> None:
        super().__post_init__()
        rope_type(self.rope_scaling or {})  # refuses what the network cannot do
        if self.positions < 1:
            raise CheckpointError(f"positions is {self.positions}; give at least 1.")

    # what SpecBlock's input layer reads off a config: it is a block of one slot
    @property
    def block_size(self) -> int:
        return 1

    @property
    def slot_rank(self) -> int:
        return 0

    @property
    def prefix_broadcast(self) -> bool:
        return True
