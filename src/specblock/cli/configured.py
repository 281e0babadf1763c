"""A verb made of a typed config: one flag per field, ``--config FILE``, ``--dry-run``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from specblock.cli.flags import option
from specblock.cli.support import guarded
from specblock.training.settings import RunSettings


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
        parameters = _parameters(settings)
        command.__signature__ = inspect.Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return guarded(command)

    return decorate


def _parameters(settings: type[RunSettings]) -> list[inspect.Parameter]:
    own = [option(name, field, field.default) for name, field in settings.model_fields.items()]
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
