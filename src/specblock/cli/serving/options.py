"""Options of ``specblock serve`` alone."""

from pathlib import Path
from typing import Annotated

import typer

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port; 0 takes a free one.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="File with one key a line; requests must carry one of them.", show_default="no key"
    ),
]
MaxRunning = Annotated[int, typer.Option(help="Answers that are written at the same time.")]
MaxWaiting = Annotated[int, typer.Option(help="Further ones that wait; beyond them comes a 429.")]
MaxPromptTokens = Annotated[
    int | None,
    typer.Option(help="Longest prompt.", show_default="what the model's context holds"),
]
MaxOutputTokens = Annotated[
    int, typer.Option(help="Longest answer, and that of requests that say no length.")
]
MaxN = Annotated[int, typer.Option(help="Most answers of one request.")]
MaxSeconds = Annotated[float, typer.Option(help="Longest time for a request.")]
MaxBody = Annotated[float, typer.Option("--max-body", help="Largest body of a request, MiB.")]
MaxConnections = Annotated[int, typer.Option(help="Most connections at a time.")]
StalledSeconds = Annotated[
    float, typer.Option(help="What a client may take to send a request, or to read on.")
]
GraceSeconds = Annotated[
    float, typer.Option(help="What answers under way are given when the server is stopped.")
]
Memory = Annotated[
    float | None,
    typer.Option(
        min=1, help="MiB of all caches together.", show_default="an eighth of what is free"
    ),
]
AdaptMemory = Annotated[
    float,
    typer.Option(
        min=0,
        help="MiB of earlier answers to draft from with --adapt. Off: their speed would tell one "
        "client what another was answered.",
    ),
]
