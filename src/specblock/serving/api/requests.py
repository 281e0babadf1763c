"""The requests that are understood, field by field.

Whatever is not understood is refused by name, but for values that ask for nothing: null, and those
of ``HARMLESS``, which official clients send along.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from specblock.serving.api.errors import ApiError

__all__ = ["ChatRequest", "CompletionRequest", "GenerationRequest", "StreamOptions", "parse"]

# values of fields beyond those below that change nothing here
HARMLESS: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "parallel_tool_calls": (True, False),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
# text about the caller, read by nobody
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
MESSAGE_HARMLESS: dict[str, tuple[Any, ...]] = {"annotations": ([],), "tool_calls": ([],)}

Text = Annotated[str, Field(min_length=1, max_length=1000)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """Base of all: no unknown fields, no conversion of types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """``include_rounds`` is an extension: what every verification proposed and accepted."""

    include_usage: bool = False
    include_rounds: bool = False
    include_obfuscation: Literal[False] = False


class JsonSchema(Strict):
    name: str = ""
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GenerationRequest(Strict):
    """What both ways of asking have in common; defaults are OpenAI's."""

    model: str | None = None
    n: Annotated[int, Field(ge=1)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] = []
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)
    ] = {}
    response_format: ResponseFormat | None = None
    ignore_eos: bool = False

    unsaid_tokens: ClassVar[int | None] = None  # of an answer whose length was not said

    @property
    def most_tokens(self) -> int | None:
        """Of the answer, as far as it was said."""
        return self.max_tokens

    @property
    def count(self) -> int:
        """Of answers."""
        return self.n

    @property
    def texts(self) -> list[str]:
        """Of the prompts, as far as they are text."""
        return []

    @property
    def options(self) -> StreamOptions:
        return self.stream_options or StreamOptions()

    @property
    def top(self) -> int | None:
        """How many alternatives of every token are told with its log-probability; None: neither."""
        return None


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    def as_given(self) -> dict[str, str]:
        """For a chat template, to which a developer is the system."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(GenerationRequest):
    """``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0

    @property
    def texts(self) -> list[str]:
        return ["".join(message.as_given()["content"] for message in self.messages)]

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """``/v1/completions``."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    unsaid_tokens: ClassVar[int | None] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or more."""
        many = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.prompt if many else [self.prompt]

    @property
    def count(self) -> int:
        return self.n * len(self.prompts)

    @property
    def texts(self) -> list[str]:
        return [prompt for prompt in self.prompts if isinstance(prompt, str)]

    @property
    def top(self) -> int | None:
        return self.logprobs


R = TypeVar("R", bound=GenerationRequest)


def parse(kind: type[R], body: bytes) -> R:
    """A request from its JSON.

    Raises:
        ApiError: it is no JSON object, or a field is wrong or not supported.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ApiError(400, "The body must be a JSON object.")
    values = _without(values, HARMLESS, LABELS)
    if isinstance(values.get("messages"), list):
        values["messages"] = [
            _without(m, MESSAGE_HARMLESS) if isinstance(m, dict) else m for m in values["messages"]
        ]
    try:
        asked = kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(error) from None
    _check_together(asked, values)
    return asked


def _without(
    values: dict[str, Any], harmless: dict[str, tuple[Any, ...]], labels: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The values without those that ask for nothing."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and name not in labels and value not in harmless.get(name, ())
    }


def _check_together(asked: GenerationRequest, values: dict[str, Any]) -> None:
    """Fields that only make sense beside another."""
    if "stream_options" in values and not asked.stream:
        raise ApiError(400, "stream_options needs stream: true.", param="stream_options")
    if "top_logprobs" in values and not getattr(asked, "logprobs", None):
        raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
    if asked.ignore_eos and asked.response_format is not None:
        raise ApiError(
            400, "ignore_eos and response_format exclude each other.", param="ignore_eos"
        )
    shape = asked.response_format
    if shape is not None and (shape.type == "json_schema") != (shape.json_schema is not None):
        raise ApiError(
            400,
            "response_format needs json_schema with the type json_schema, and only then.",
            param="response_format",
        )


def _refusal(error: ValidationError) -> ApiError:
    """A complaint of pydantic, by the field's name: of a union's, that of the likeliest kind."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    same = [each for each in found if each["loc"][0] == found[0]["loc"][0]]
    # what was meant is the kind that a value fits furthest, or whose type it is at least
    first = max(same, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    where = [str(part) for part in first["loc"]]
    name = ".".join(
        part for part in where if (part.isidentifier() and part != "str") or part.isdigit()
    )
    if first["type"] == "extra_forbidden":
        words = f"{name} is not supported by this server, or not with this value: leave it out."
        return ApiError(400, words, param=name, code="unsupported_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{name} is missing.", param=name, code="missing_required_parameter")
    words = f"{name} is wrong: {first['msg'][:1].lower()}{first['msg'][1:]}."
    return ApiError(400, words, param=name, code="invalid_value")
