"""What ``prepare-data``, ``regenerate`` and ``train`` can be told: in a YAML file or as flags.

The command line is made of these fields: a field's description is its flag's help.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from specblock.config import StrictConfig
from specblock.errors import ConfigError

DEFAULT_MODEL = "smollm2-135m-instruct"

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


def described(default: Any, text: str) -> Any:
    """A field with its help."""
    return Field(default, description=text)


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


class RegenerateSettings(RunSettings):
    """Prompts to answers of the target."""

    prompts: Path = described(..., "Prompt file of `specblock prepare-data`.")
    out: Path = described(
        ..., "Answers: a .jsonl file, or a folder of shards; what is there is not asked again."
    )
    model: str = described(DEFAULT_MODEL, "Embedded name, folder or hub id of the target.")
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
    dtype: str = described("bfloat16", "float32, bfloat16, float16 or auto.")
    device: str = described("cpu", "A torch device such as cpu or cuda.")
    threads: Count | None = described(None, "CPU threads.")
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


class TrainSettings(RunSettings):
    """Answers to a drafter."""

    answers: Path | None = described(None, "Answers of `specblock regenerate`, file or folder.")
    conversations: Path | None = described(
        None, "JSONL of conversations whose answers are trained on as they are."
    )
    out: Path = described(..., "Folder of the drafter; a run that was cut off goes on there.")
    model: str = described(DEFAULT_MODEL, "Embedded name, folder or hub id of the target.")
    kind: str = described(
        "specblock", "Drafter: specblock, eagle3, parallel, or a kind of your own."
    )
    start: Literal["closed-form", "scratch"] = described(
        "closed-form", "From the target's own layers (closed-form), or random (scratch)."
    )
    init: Path | None = described(None, "Continue from the weights of this drafter.")
    limit: Count | None = described(None, "Only the first answers.")
    held_out: Count = described(48, "Answers kept aside for evaluation.")
    simulated: Annotated[int, Field(ge=0)] = described(
        8, "Greedy ones of them that decoding is simulated on, for τ."
    )
    warm_start_answers: Count = described(600, "Answers that the closed form is solved on.")
    epochs: Count = described(5, "Passes over the answers.")
    batch_sequences: Count = described(8, "Sequences per forward.")
    accumulation: Count = described(1, "Forwards per optimiser step.")
    lr: Positive = described(2e-4, "Peak learning rate.")
    lr_floor: Share = described(0.05, "Share of it that is left at the end.")
    warmup_steps: Annotated[int, Field(ge=0)] = described(20, "Steps up to the peak.")
    clip: Positive = described(0.5, "Largest norm of the gradient.")
    seed: int = described(0, "The same seed gives the same weights.")
    draft_vocab_size: Count = described(12_288, "Tokens that the drafter can propose.")
    layers: Count = described(2, "Decoder layers of the drafter.")
    feature_layers: tuple[Annotated[int, Field(ge=0)], ...] | None = described(
        None, "Target layers (from 0) whose outputs are the features: 14,21,27 by default for 30."
    )
    block_size: Count = described(4, "Tokens a block proposes (K).")
    blocks: Count = described(2, "Blocks trained one behind the other.")
    positions: Count = described(32, "Positions per sequence that run whole blocks.")
    chain_positions: Annotated[int, Field(ge=0)] = described(
        0, "Positions per sequence of kinds without blocks; 0 is all."
    )
    slot_decay: Share = described(0.8, "Weight of slot k is this to the power k.")
    cached_slots: Count = described(1, "Slots cached of a committed position.")
    feature_norm: bool = described(True, "RMS norm on every feature layer.")
    slot_rank: Annotated[int, Field(ge=0)] = described(192, "Rank of a slot's own projection.")
    sink: bool = described(True, "A learned entry before position 0.")
    target_lm_head: bool = described(True, "Frozen head: the target's rows, not stored.")
    valid_prefix_mask: bool = described(True, "Train a slot only behind right ones.")
    mean_over_valid: bool = described(
        False,
        "A slot's loss is the mean over its valid rows alone, as in the paper; otherwise a "
        "row weighs the same in every slot.",
    )
    layer_shift: bool = described(True, "Between layers, slot k receives slot k - 1.")
    prefix_broadcast: bool = described(True, "Every slot reads the features, not slot 0 alone.")
    rank_budget: float = described(10.0, "Frequency weight of the rank loss; 0 or less is off.")
    ttt_steps: Count = described(7, "Steps of training-time test (eagle3).")
    mixed_precision: bool = described(True, "bf16 products over fp32 weights.")
    sharded: bool = described(
        False, "Under torchrun, divide the trained weights among the processes (FSDP2)."
    )
    keep_checkpoints: Count = described(3, "Checkpoints kept.")
    save_every_seconds: Annotated[float, Field(ge=0)] = described(
        300.0, "Seconds between checkpoints."
    )
    eval_every_seconds: Positive = described(600.0, "Seconds between evaluations.")
    features_file: Path | None = described(None, "Store features here and read them again.")
    online: bool = described(False, "Compute features anew for every batch: needs no room.")
    tensorboard: bool = described(False, "Log to TensorBoard as well.")
    wandb: bool = described(False, "Log to Weights & Biases as well.")
    minutes: Positive | None = described(None, "Stop after so many minutes.")
    dtype: str = described("bfloat16", "The target's: float32, bfloat16, float16 or auto.")
    device: str = described("cpu", "A torch device such as cpu or cuda.")
    threads: Count | None = described(None, "CPU threads.")

    @field_validator("feature_layers", mode="before")
    @classmethod
    def _numbers_of_text(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

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
