"""``specblock serve``: an OpenAI-compatible server."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from specblock.cli import options
from specblock.cli.serving import options as own
from specblock.cli.support import open_speculator, verb
from specblock.errors import ConfigError

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


@verb
def serve(
    model: options.Model = options.DEFAULT_MODEL,
    drafter: options.Drafter = "auto",
    host: own.Host = "127.0.0.1",
    port: own.Port = 8000,
    api_key_file: own.ApiKeyFile = None,
    max_running: own.MaxRunning = 16,
    max_waiting: own.MaxWaiting = 64,
    max_prompt_tokens: own.MaxPromptTokens = None,
    max_output_tokens: own.MaxOutputTokens = 2048,
    max_n: own.MaxN = 8,
    max_seconds: own.MaxSeconds = 600.0,
    max_body: own.MaxBody = 4.0,
    max_connections: own.MaxConnections = 256,
    stalled_seconds: own.StalledSeconds = 30.0,
    grace_seconds: own.GraceSeconds = 3.0,
    memory: own.Memory = None,
    adapt: options.Adapt = None,
    adapt_memory: own.AdaptMemory = 0.0,
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
        max_seconds=max_seconds, max_body_mib=max_body, max_connections=max_connections,
        stalled_seconds=stalled_seconds, grace_seconds=grace_seconds,
    )  # fmt: skip
    keys = Keys(api_key_file)
    speculator = open_speculator(
        model,
        drafter,
        dtype,
        device,
        threads,
        exact=exact,
        adapt=adapt,
        adapt_memory=adapt_memory,
        where="idle",
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
