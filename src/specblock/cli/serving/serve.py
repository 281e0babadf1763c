"""``specblock serve``: an OpenAI-compatible server."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from specblock.cli import options
from specblock.cli.support import verb
from specblock.errors import ConfigError
from specblock.serving.settings import ServingConfig

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


@verb
def serve(
    *,
    config: ServingConfig,
    memory: Annotated[
        float | None,
        typer.Option(
            min=1, help="MiB of all caches together.", show_default="an eighth of what is free"
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with one key a line; requests must carry one of them.", show_default="no key"
        ),
    ] = None,
    adapt: options.Adapt = None,
    adapt_memory: Annotated[
        float,
        typer.Option(
            min=0,
            help="MiB of earlier answers to draft from with --adapt. Off: their speed would tell "
            "one client what another was answered.",
        ),
    ] = 0.0,
    place: options.Speculating,
) -> None:
    """Serve the model to clients of OpenAI's API, and a page at /."""
    _check_installed()
    from specblock.serving.http.guards import Keys
    from specblock.serving.run import serve as run

    keys = Keys(api_key_file)
    speculator = place.open(adapt=adapt, adapt_memory=adapt_memory, where="idle")
    if memory is not None:
        speculator.target.texts.most_bytes = int(memory * 2**20)
    run(speculator, place.model, config, keys, on_ready=_say_ready)


def _check_installed() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Serving needs {', '.join(missing)}: install it with pip install 'specblock[serve]'."
        )


def _say_ready(address: str) -> None:
    typer.echo(f"Ready: {address} (API at {address}/v1, Ctrl-C stops)")
