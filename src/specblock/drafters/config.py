"""What every drafter's ``config.json`` has in common: how it is written, read and refused."""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any, ClassVar, Self

from specblock.errors import CheckpointError, FeatureLayersError

FEATURE_CONVENTION = "output_of_decoder_layer"


class StoredConfig:
    """Base of the drafters' config dataclasses, which are stored beside the weights.

    Every subclass has at least ``hidden_size``, ``vocab_size``, ``draft_vocab_size``,
    ``target_layers``, ``feature_layers`` and their ``feature_convention``, ``target_lm_head``,
    ``tokenizer_fingerprint`` and ``target_name``.
    """

    drafter_type: ClassVar[str]
    own_embeddings = False  # a field of the drafters that may have others than the target's

    def __post_init__(self) -> None:
        if self.feature_convention != FEATURE_CONVENTION:
            raise CheckpointError(
                f"Feature layers are given as '{self.feature_convention}', this version reads "
                f"'{FEATURE_CONVENTION}'; convert the checkpoint."
            )

    def to_dict(self) -> dict[str, Any]:
        return {"drafter_type": self.drafter_type, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Raises :class:`CheckpointError` on unknown or missing fields, naming them."""
        data = dict(data)
        kind = data.pop("drafter_type", None)
        if kind != cls.drafter_type:
            raise CheckpointError(
                f"config.json describes a drafter of type {kind!r}, not {cls.drafter_type!r}; "
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
    def load(cls, folder: Path) -> Self:
        """The config of a folder; raises :class:`CheckpointError` where there is none."""
        return cls.from_dict(read_json(folder))


def read_json(folder: Path) -> dict[str, Any]:
    """``config.json`` of a drafter's folder, as it stands.

    Raises :class:`CheckpointError` if the file is missing or no JSON object.
    """
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"There is no drafter in {folder}: config.json is missing; check the path."
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error.msg}); copy it again.") from error
    except (ValueError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(
            f"{path} does not describe a drafter ({error}); copy it again."
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path} does not describe a drafter (it is no JSON object); copy it again."
        )
    return data


def paper_feature_layers(target_layers: int) -> tuple[int, int, int]:
    """The three layers that EAGLE-3 and SpecBlock read: outputs of layers 1, n/2 - 1 and n - 4.

    Raises :class:`FeatureLayersError` if the target is so shallow that they collide.
    """
    layers = (1, target_layers // 2 - 1, target_layers - 4)
    if len(set(layers)) < 3 or min(layers) < 0:
        raise FeatureLayersError(
            f"A target of {target_layers} layers is too shallow for the usual feature layers "
            f"{layers}; name three different layers in the drafter's config."
        )
    return layers
