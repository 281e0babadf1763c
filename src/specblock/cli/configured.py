"""A verb made of a typed config: one flag per field, ``--config FILE``, ``--dry-run``."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from specblock.cli.support import verb
from specblock.training.settings import RunSettings

FLAG_TYPES = (bool, int, float, Path, str)


def configured(settings: type[RunSettings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make ``run(settings)`` a command. Flags win over the file, the file over the defaults."""

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        def command(config: Path | None, dry_run: bool, **flags: Any) -> None:
            resolved = settings.resolve(config, flags)
            if dry_run:
                typer.echo(resolved.to_yaml(), nl=False)
                return
            run(resolved)

        command.__name__, command.__doc__ = run.__name__, run.__doc__
        guarded = verb(command)
        parameters = _parameters(settings)
        guarded.__signature__ = inspect.Signature(parameters)
        guarded.__annotations__ = {p.name: p.annotation for p in parameters}
        return guarded

    return decorate


def _parameters(settings: type[RunSettings]) -> list[inspect.Parameter]:
    own = [_parameter(name, field) for name, field in settings.model_fields.items()]
    config = Annotated[
        Path | None, typer.Option(help="YAML file with these settings; flags win over it.")
    ]
    dry_run = Annotated[bool, typer.Option("--dry-run", help="Print the settings as YAML, only.")]
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        *own,
        inspect.Parameter("config", kind, default=None, annotation=config),
        inspect.Parameter("dry_run", kind, default=False, annotation=dry_run),
    ]


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """The flag of a field; None stands for "not given", so that a file may say it instead."""
    shown = "required" if field.is_required() else _shown(field.default)
    option = typer.Option(help=field.description, show_default=shown)
    annotation = Annotated[flag_type(field.annotation) | None, option]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def flag_type(annotation: Any) -> type:
    """The plain type of a field's annotation; text for everything that pydantic has to parse."""
    if get_origin(annotation) is Annotated:
        return flag_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        return flag_type(inner[0]) if len(inner) == 1 else str
    if get_origin(annotation) is Literal or annotation not in FLAG_TYPES:
        return str
    return annotation


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return ",".join(":".join(f"{part:g}" for part in pair) for pair in default)
    return str(default).lower() if isinstance(default, bool) else str(default)
