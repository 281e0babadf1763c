"""Options made of typed settings: a field is an option, its description the help.

So a setting is written down once, whether Python, a file or the command line gives it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from specblock.config import StrictConfig

__all__ = ["Flags", "expanded", "flag_type", "option"]

FLAG_TYPES = (bool, int, float, Path, str)


class Flags:
    """How the options of a verb differ from the settings that they are made of.

    ``Annotated[GenerationConfig, Flags(max_new_tokens=512)]``

    Args:
        defaults: that the verb has instead of the settings' own.
    """

    def __init__(self, **defaults: Any):
        self.defaults = defaults


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` with an option for every field of those parameters that are settings.

    Settings may say ``hidden`` (names of fields without an option) and ``flags`` (fields whose
    option has another name).
    """
    hints = get_type_hints(function, include_extras=True)
    parts: dict[str, tuple[type[StrictConfig], Mapping[str, Any]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        kind, flags = hints[parameter.name], Flags()
        if get_origin(kind) is Annotated and isinstance(get_args(kind)[1], Flags):
            kind, flags = get_args(kind)
        if isinstance(kind, type) and issubclass(kind, StrictConfig):
            parts[parameter.name] = kind, flags.defaults
            parameters += [
                option(_named(kind, name), field, flags.defaults.get(name, field.default))
                for name, field in kind.model_fields.items()
                if name not in getattr(kind, "hidden", ())
            ]
        else:
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=kind, kind=keyword))

    def command(**given: Any) -> None:
        for name, (kind, defaults) in parts.items():
            own = {field: given.pop(_named(kind, field), None) for field in kind.model_fields}
            said = {field: value for field, value in own.items() if value is not None}
            given[name] = kind(**{**defaults, **said})
        function(**given)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _named(kind: type[StrictConfig], field: str) -> str:
    return getattr(kind, "flags", {}).get(field, field)


def option(name: str, field: FieldInfo, default: Any) -> inspect.Parameter:
    """The option of a field; None stands for "not given", so that a file may say it instead."""
    shown = "required" if field.is_required() else _shown(default)
    own = typer.Option(help=field.description, show_default=shown)
    annotation = Annotated[flag_type(field.annotation) | None, own]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def flag_type(annotation: Any) -> type:
    """The plain type of a field's annotation; text for everything that pydantic has to parse."""
    if get_origin(annotation) is Annotated:
        return flag_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        return flag_type(inner[0]) if len(inner) == 1 else str
    if get_origin(annotation) is tuple and _texts(get_args(annotation)):
        return list[str]  # an option that may be given several times
    if get_origin(annotation) is Literal or annotation not in FLAG_TYPES:
        return str
    return annotation


def _texts(parts: tuple[Any, ...]) -> bool:
    first = parts[0]
    return (get_args(first)[0] if get_origin(first) is Annotated else first) is str


def _shown(default: Any, between: str = ",") -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, tuple):
        return between.join(_shown(part, ":") for part in default)
    return str(default).lower() if isinstance(default, bool) else str(default)
