"""What a SpecBlock drafter is made of; stored as ``config.json`` beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from specblock.drafters.config import FEATURE_CONVENTION, StoredConfig, paper_feature_layers
from specblock.drafters.layers import rope_type
from specblock.errors import CheckpointError

__all__ = ["DRAFTER_TYPE", "FEATURE_CONVENTION", "SpecBlockConfig", "paper_feature_layers"]

DRAFTER_TYPE = "specblock"


@dataclass(frozen=True)
class SpecBlockConfig(StoredConfig):
    """Shape and wiring of the drafter network (SpecBlock, arXiv 2605.07243, architecture).

    The last group are departures from the paper, each off by default; see
    ``docs/drafter.md`` for what each is for.
    """

    drafter_type: ClassVar[str] = DRAFTER_TYPE

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
    block_size: int = 4  # K, slots per block
    draft_vocab_size: int = 32000
    rank_classes: int = 4
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None  # transformers' entry of type linear or llama3
    # of the target's tokenizer (specblock.drafters.fingerprint); empty: not recorded
    tokenizer_fingerprint: str = ""
    target_name: str = ""
    feature_convention: str = FEATURE_CONVENTION
    # departures from the paper
    cached_slots: int = 0  # slots kept per committed position; 0 = all K (paper), 1 = slot 0 alone
    feature_norm: bool = False  # RMS norm on every feature layer before condition_proj
    slot_rank: int = 0  # rank of a per-slot input projection beside the shared one; 0 = none
    sink: bool = False  # a learned entry before position 0, for layers that rest on one
    target_lm_head: bool = False  # lm_head is the target's rows of the draft vocabulary: not stored
    qkv_bias: bool = (
        False  # biases on queries, keys and values, for copies of layers that have them
    )
    qk_norm: bool = False  # norms on the heads of queries and keys, likewise
    # the paper's ablations
    layer_shift: bool = True  # before layers l >= 1 slot k reads slot k - 1
    prefix_broadcast: bool = True  # every slot gets condition and token, not slot 0 alone

    def __post_init__(self) -> None:
        super().__post_init__()
        rope_type(self.rope_scaling or {})  # refuses what the network cannot do
        if not 0 <= self.cached_slots <= self.block_size:
            raise CheckpointError(
                f"cached_slots is {self.cached_slots} but a block has {self.block_size} slots; "
                "give 0 (all) to block_size."
            )
        if self.slot_rank and not self.prefix_broadcast:
            raise CheckpointError(
                "slot_rank projects what prefix_broadcast: false keeps from the later slots; "
                "set slot_rank to 0."
            )

    @property
    def slots_kept(self) -> int:
        """Cache entries per committed position (c)."""
        return self.cached_slots or self.block_size
