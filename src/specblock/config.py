"""Typed, frozen settings: one schema for Python, the command line and files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from specblock.errors import ConfigError

if TYPE_CHECKING:
    from specblock.tree.sampling import SamplingParams

__all__ = ["DEFAULT_MODEL", "GenerationConfig", "Placement", "StrictConfig", "described"]

DEFAULT_MODEL = "smollm2-135m-instruct"  # what is embedded


def described(default: Any, text: str) -> Any:
    """A field with its help."""
    return Field(default, description=text)


class StrictConfig(BaseModel):
    """Base of every config: frozen, no unknown keys, errors in one sentence.

    Raises:
        ConfigError: on an unknown key (the nearest known name is suggested) or a bad value.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    def __init__(self, **values: Any) -> None:
        _refuse_unknown_keys(type(self), values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_sentence(type(self), error)) from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from a mapping such as a parsed JSON object."""
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{cls.__name__} must be given as names with values, not as a "
                f"{type(values).__name__}."
            )
        return cls(**{str(key): value for key, value in values.items()})

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a config from a ``.json``, ``.yaml`` or ``.yml`` file."""
        return cls.from_dict(_read_mapping(Path(path)))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values that :meth:`from_dict` and JSON take back."""
        return self.model_dump(mode="json")

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some settings changed."""
        kept = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**kept, **changes})


class Placement(StrictConfig):
    """Which target, and where it runs."""

    model: str = described(
        DEFAULT_MODEL, "Embedded name, folder, GGUF file or hub id of the target."
    )
    dtype: str = described("float32", "float32, bfloat16, float16 or auto.")
    device: str = described("cpu", "A torch device such as cpu or cuda.")
    threads: Annotated[int, Field(ge=1)] | None = described(
        None, "CPU threads; none leaves PyTorch's own choice."
    )


class GenerationConfig(StrictConfig):
    """How one answer is generated; names are those of transformers' ``generate``.

    ``temperature`` 0 is greedy decoding. ``do_sample`` may be left out; ``True`` without a
    temperature means temperature 1, ``False`` means greedy whatever the temperature is.
    ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off. ``frequency_penalty`` and
    ``presence_penalty`` look at generated tokens, ``repetition_penalty`` at the prompt too.
    ``eos_token_id`` ``None`` takes the model's own end tokens; ``ignore_eos`` runs to
    ``max_new_tokens``. Sampled text is a function of the prompt, the settings and ``seed``.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = described(256, "Most tokens of one answer.")
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = described(0.0, "0 is greedy decoding.")
    top_k: Annotated[int, Field(ge=0)] = described(
        0, "Sample from the k most probable tokens; 0 is off."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] = described(
        1.0, "Sample from this much probability mass; 1 is off."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] = described(
        0.0, "Least share of the best token's probability."
    )
    repetition_penalty: Annotated[float, Field(gt=0)] = described(
        1.0, "Above 1 discourages repetition."
    )
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = described(
        0.0, "Lowers tokens by how often they came."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = described(
        0.0, "Lowers tokens that came already."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = described(
        0, "The same seed gives the same text."
    )
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = described(
        (), "Stop before this text; may be given several times."
    )
    eos_token_id: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    ignore_eos: bool = False

    # of the command line: fields without an option, and options with another name
    hidden: ClassVar = ("do_sample", "eos_token_id", "ignore_eos")
    flags: ClassVar = {"stop_strings": "stop"}

    @field_validator("stop_strings", "eos_token_id", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int) else value

    @model_validator(mode="before")
    @classmethod
    def _sampling_needs_a_temperature(cls, values: Any) -> Any:
        if values.get("do_sample") is not True:
            return values
        values = {"temperature": 1.0, **values}
        if values["temperature"] == 0:
            raise ConfigError(
                "temperature must be above 0 when do_sample is true: "
                "raise it, or leave do_sample out."
            )
        return values

    def sampling(self) -> SamplingParams:
        """What the acceptance rule needs to know of these settings."""
        from specblock.tree.sampling import SamplingParams  # torch is heavy: only when decoding

        return SamplingParams(
            temperature=0.0 if self.do_sample is False else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=self.seed,
        )


def _refuse_unknown_keys(cls: type[StrictConfig], values: Mapping[str, Any]) -> None:
    unknown = [key for key in values if key not in cls.model_fields]
    if not unknown:
        return
    known = list(cls.model_fields)
    hints = []
    for key in unknown:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hints.append(f"'{key}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
    plural = "s" if len(unknown) > 1 else ""
    tail = "." if all("did you mean" in hint for hint in hints) else f"; known: {', '.join(known)}."
    raise ConfigError(f"{cls.__name__} has no setting{plural} {', '.join(hints)}{tail}")


def _sentence(cls: type[StrictConfig], error: ValidationError) -> str:
    """The first complaint of pydantic, as one sentence with the value that was given."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or cls.__name__
    complaint = first["msg"][:1].lower() + first["msg"][1:]
    for wording in ("input should be ", "value error, ", "input "):
        complaint = complaint.removeprefix(wording)
    given = repr(first["input"])
    if len(given) > 60:
        given = given[:57] + "..."
    return f"{name} must be {complaint}, not {given}."


def _read_mapping(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a UTF-8 text file.") from None
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}.") from None
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            return yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            where = " ".join(str(error).split())
            raise ConfigError(f"{path} is not valid YAML: {where}.") from None
    raise ConfigError(f"{path} must end in .json, .yaml or .yml.")
