"""What a SpecBlock drafter is made of; stored as ``config.json`` beside its weights."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specblock.errors import CheckpointError

DRAFTER_TYPE = "specblock"
FEATURE_CONVENTION = "output_of_decoder_layer"


@dataclass(frozen=True)
class SpecBlockConfig:
    """Shape and wiring of the drafter network (SpecBlock, arXiv 2605.07243, architecture).

    The last group are departures from the paper, each off by default; see
    ``docs/drafter.md`` for what each is for.
    """

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

    def __post_init__(self) -> None:
        if self.feature_convention != FEATURE_CONVENTION:
            raise CheckpointError(
                f"Feature layers are given as '{self.feature_convention}', this version reads "
                f"'{FEATURE_CONVENTION}'; convert the checkpoint."
            )
        if not 0 <= self.cached_slots <= self.block_size:
            raise CheckpointError(
                f"cached_slots is {self.cached_slots} but a block has {self.block_size} slots; "
                "give 0 (all) to block_size."
            )

    @property
    def slots_kept(self) -> int:
        """Cache entries per committed position (c)."""
        return self.cached_slots or self.block_size

    def to_dict(self) -> dict[str, Any]:
        return {"drafter_type": DRAFTER_TYPE, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SpecBlockConfig:
        """Raises :class:`CheckpointError` on unknown or missing fields, naming them."""
        data = dict(data)
        kind = data.pop("drafter_type", None)
        if kind != DRAFTER_TYPE:
            raise CheckpointError(
                f"config.json describes a drafter of type {kind!r}, not {DRAFTER_TYPE!r}; "
                "published checkpoints are turned into this format by `specblock convert`."
            )
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in data:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise CheckpointError(f"config.json has an unknown field {key!r}{hint}")
        missing = [
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in data
        ]
        if missing:
            raise CheckpointError(f"config.json lacks {', '.join(missing)}; the file is damaged.")
        data["feature_layers"] = tuple(data["feature_layers"])
        return cls(**data)

    @classmethod
    def load(cls, folder: Path) -> SpecBlockConfig:
        path = folder / "config.json"
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"There is no drafter in {folder}: config.json is missing; check the path."
            ) from error
        except json.JSONDecodeError as error:
            raise CheckpointError(
                f"{path} is not valid JSON ({error.msg}); copy it again."
            ) from error


def paper_feature_layers(target_layers: int) -> tuple[int, int, int]:
    """The three layers the paper reads: outputs of layers 1, n/2 - 1 and n - 4.

    Raises :class:`CheckpointError` if the target is so shallow that they collide.
    """
    layers = (1, target_layers // 2 - 1, target_layers - 4)
    if len(set(layers)) < 3 or min(layers) < 0:
        raise CheckpointError(
            f"A target of {target_layers} layers is too shallow for the usual feature layers "
            f"{layers}; name three different layers in the drafter's config."
        )
    return layers
