"""What ``prepare-data``, ``regenerate`` and ``train`` can be told: in a YAML file or as flags.

The command line is made of these fields: a field's description is its flag's help.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from specblock.config import Placement, StrictConfig, described
from specblock.drafters.specblock.objective_config import ObjectiveConfig
from specblock.errors import ConfigError
from specblock.training.loop.config import TrainConfig
from specblock.training.recipe import DrafterRecipe, DrafterShape

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class RunSettings(StrictConfig):
    """Settings of a verb; ``flags`` and files say them alike.

    Raises:
        ConfigError: something that has no default is missing, or as :class:`StrictConfig`.
    """

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_missing(cls, values: Any) -> Any:
        for name, field in cls.model_fields.items():
            if field.is_required() and values.get(name) is None:
                raise ConfigError(
                    f"'{name}' is missing: give --{name.replace('_', '-')}, or name it in the "
                    f"--config file."
                )
        return values

    @classmethod
    def resolve(cls, config: Path | None, flags: Mapping[str, Any]) -> RunSettings:
        """Settings of a file, flags that were given (those that are not None) first."""
        given = {name: value for name, value in flags.items() if value is not None}
        if config is None:
            return cls.from_dict(given)
        # a file without what the flags say may be incomplete: read it before it is judged
        return cls.from_dict({**read_settings(config), **given})

    def to_yaml(self) -> str:
        """The settings as a file that ``--config`` reads."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def read_settings(path: Path) -> dict[str, Any]:
    """Names and values of a ``.yaml`` or ``.json`` file; raises :class:`ConfigError`."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path} must hold names with values, not a {type(values).__name__}.")
    return {str(name): value for name, value in (values or {}).items()}


class OnTarget(Placement, RunSettings):
    """Settings of a verb that runs the target, which need not be exact."""

    dtype: str = described("bfloat16", "The target's: float32, bfloat16, float16 or auto.")


class PrepareDataSettings(RunSettings):
    """Rows of a file or data set to normalised prompts."""

    source: str = described(..., "JSONL file (.zst), or the id or folder of a data set.")
    out: Path = described(..., "Prompt file to write, .jsonl or .jsonl.zst.")
    split: str = described("train", "Split of a data set.")
    subset: str | None = described(None, "Configuration of a data set that has several.")
    limit: Count | None = described(None, "Keep no more prompts than this.")
    on_error: Literal["stop", "skip"] = described(
        "stop", "What to do at a broken row: stop, or skip and count it."
    )
    model: str | None = described(
        None, "Also refuse what this target's chat template refuses: name, folder or hub id."
    )


class RegenerateSettings(OnTarget):
    """Prompts to answers of the target."""

    prompts: Path = described(..., "Prompt file of `specblock prepare-data`.")
    out: Path = described(
        ..., "Answers: a .jsonl file, or a folder of shards; what is there is not asked again."
    )
    limit: Count | None = described(None, "Only the first conversations.")
    max_prompt_tokens: Count = described(256, "Leave longer prompts out.")
    max_new_tokens: Count = described(256, "Most tokens of one answer.")
    temperatures: tuple[tuple[Annotated[float, Field(ge=0, le=100)], Share], ...] = described(
        ((0.0, 0.4), (0.3, 0.1), (0.5, 0.1), (0.7, 0.1), (1.0, 0.3)),
        "Temperatures and their shares: 0:0.4,1:0.6.",
    )
    top_p: Share = described(0.95, "Sample from this much probability mass; 1 is off.")
    batch_size: Count = described(64, "Answers that are written at the same time.")
    shard_rows: Count = described(20_000, "Rows of one shard, where --out is a folder.")
    seed: int = described(0, "The same seed gives the same answers.")
    minutes: Positive | None = described(None, "Stop after so many minutes.")
    endpoint: str | None = described(
        None, "Ask this OpenAI-compatible endpoint instead: http://host:8000/v1."
    )
    endpoint_model: str | None = described(None, "The target's name at the endpoint.")
    endpoint_key_file: Path | None = described(None, "File with the endpoint's key.")
    concurrency: Count = described(32, "Questions to the endpoint at a time.")
    retries: Annotated[int, Field(ge=0)] = described(5, "Tries again after a failure, per answer.")
    timeout: Positive = described(600.0, "Seconds to wait for one answer of the endpoint.")

    @field_validator("temperatures", mode="before")
    @classmethod
    def _pairs_of_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(tuple(pair.split(":")) for pair in value.split(","))

    @model_validator(mode="after")
    def _fits_together(self) -> RegenerateSettings:
        total = sum(share for _, share in self.temperatures)
        if abs(total - 1) > 1e-6:
            raise ConfigError(f"The shares of temperatures must add up to 1, not {total:g}.")
        if (self.endpoint is None) != (self.endpoint_model is None):
            raise ConfigError("--endpoint and --endpoint-model go together: give both or neither.")
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"--endpoint is an address such as http://host:8000/v1, not "
                              f"'{self.endpoint}'.")  # fmt: skip
        return self


class TrainSettings(TrainConfig, ObjectiveConfig, DrafterShape, OnTarget):
    """Answers to a drafter."""

    answers: Path | None = described(None, "Answers of `specblock regenerate`, file or folder.")
    conversations: Path | None = described(
        None, "JSONL of conversations whose answers are trained on as they are."
    )
    out: Path = described(..., "Folder of the drafter; a run that was cut off goes on there.")
    start: Literal["closed-form", "scratch"] = described(
        "closed-form", "From the target's own layers (closed-form), or random (scratch)."
    )
    minutes: Positive | None = described(None, "Stop after so many minutes.")

    def recipe(self) -> DrafterRecipe:
        """The same as the pipeline takes it."""

        def part(kind: type[StrictConfig]) -> dict[str, Any]:
            return {name: getattr(self, name) for name in kind.model_fields}

        return DrafterRecipe(
            **part(DrafterShape),
            from_scratch=self.start == "scratch",
            objective=ObjectiveConfig(**part(ObjectiveConfig)),
            train=TrainConfig(**part(TrainConfig)),
        )

    @model_validator(mode="before")
    @classmethod
    def _without_what_engines_lack(cls, values: Any) -> Any:
        if values.get("for_engines") is not True:
            return values
        if values.get("kind") != "eagle3":
            raise ConfigError("--for-engines is about EAGLE-3 drafters: add --kind eagle3.")
        for name in ("sink", "feature_norm", "feature_layers"):
            if values.get(name):
                flag = name.replace("_", "-")
                raise ConfigError(f"--for-engines trains without --{flag}: drop one of the two.")
        return {**values, "sink": False, "feature_norm": False}

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if (self.answers is None) == (self.conversations is None):
            raise ConfigError(
                "Training needs either --answers (of `specblock regenerate`) or --conversations "
                "(with answers of their own), not both."
            )
        if self.cached_slots > self.block_size:
            raise ConfigError(
                f"cached_slots is at most block_size ({self.block_size}), not {self.cached_slots}."
            )
        return self
