"""``specblock serve``: an OpenAI-compatible server."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from specblock.cli import options
from specblock.cli.support import open_speculator, verb
from specblock.errors import ConfigError

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


@verb
def serve(
    model: options.Model = options.DEFAULT_MODEL,
    drafter: options.Drafter = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with one key a line; requests must carry one of them."),
    ] = None,
    max_running: Annotated[
        int, typer.Option(help="Answers that are written at the same time.")
    ] = 16,
    max_waiting: Annotated[
        int, typer.Option(help="Further ones that wait; beyond them requests get 429.")
    ] = 64,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(help="Longest prompt.", show_default="what the model's context holds"),
    ] = None,
    max_output_tokens: Annotated[
        int, typer.Option(help="Longest answer, and that of requests that say no length.")
    ] = 2048,
    max_n: Annotated[int, typer.Option(help="Most answers of one request.")] = 8,
    max_seconds: Annotated[float, typer.Option(help="Longest time for a request.")] = 600.0,
    max_body_mib: Annotated[float, typer.Option(help="Largest body of a request, MiB.")] = 4.0,
    max_connections: Annotated[int, typer.Option(help="Most connections at a time.")] = 256,
    stalled_seconds: Annotated[
        float, typer.Option(help="What a client may take to send a request or to read on.")
    ] = 30.0,
    grace_seconds: Annotated[
        float, typer.Option(help="What answers under way are given when the server is stopped.")
    ] = 5.0,
    memory: Annotated[
        float | None,
        typer.Option(help="MiB of all caches together.", show_default="an eighth of what is free"),
    ] = None,
    adapt: options.Adapt = None,
    adapt_memory: Annotated[
        float,
        typer.Option(
            help="MiB of earlier answers to draft from with --adapt; who times answers can find "
            "out what is in it, so for users who may know of each other."
        ),
    ] = 0.0,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    exact: options.Exact = None,
) -> None:
    """Serve the model to clients of OpenAI's API, and a page at /."""
    _check_installed()
    from specblock.serving.http.guards import Keys
    from specblock.serving.run import serve as run
    from specblock.serving.settings import ServingConfig

    config = ServingConfig(
        host=host, port=port, max_running=max_running, max_waiting=max_waiting,
        max_prompt_tokens=max_prompt_tokens, max_output_tokens=max_output_tokens, max_n=max_n,
        max_seconds=max_seconds, max_body_mib=max_body_mib, max_connections=max_connections,
        stalled_seconds=stalled_seconds, grace_seconds=grace_seconds,
    )  # fmt: skip
    keys = Keys(api_key_file)
    speculator = open_speculator(
        model, drafter, dtype, device, threads, exact=exact, adapt=adapt, adapt_memory=adapt_memory
    )
    if memory is not None:
        speculator.target.texts.most_bytes = int(memory * 2**20)
    run(speculator, model, config, keys, on_ready=_say_ready)


def _check_installed() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Serving needs {', '.join(missing)}: install it with pip install 'specblock[serve]'."
        )


def _say_ready(address: str) -> None:
    typer.echo(f"Ready: {address} (API at {address}/v1, Ctrl-C stops)")
