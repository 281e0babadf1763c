"""How the server serves; what each limit is for stands in ``docs/serving.md``."""

from __future__ import annotations

import ipaddress
from typing import Annotated, ClassVar

from pydantic import Field

from specblock.config import StrictConfig, described

__all__ = ["ServingConfig"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class ServingConfig(StrictConfig):
    """Address and limits. Times are seconds, sizes MiB.

    ``max_waiting`` requests wait beside the ``max_running`` that are written; further ones are
    refused. ``max_prompt_tokens`` None leaves the model's context. ``grace_seconds`` is what
    answers under way are given when the server stops; ``stalled_seconds`` what a client may take to
    send a request, or to read a part of its answer.
    """

    host: str = described("127.0.0.1", "Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = described(8000, "Port; 0 takes a free one.")
    max_running: Count = described(16, "Answers that are written at the same time.")
    max_waiting: Annotated[int, Field(ge=0)] = described(
        64, "Further ones that wait; beyond them comes a 429."
    )
    max_prompt_tokens: Count | None = described(
        None, "Longest prompt; none leaves what the model's context holds."
    )
    max_output_tokens: Count = described(
        2048, "Longest answer, and that of requests that say no length."
    )
    max_n: Count = described(8, "Most answers of one request.")
    max_seconds: Positive = described(600.0, "Longest time for a request.")
    max_body_mib: Positive = described(4.0, "Largest body of a request, MiB.")
    max_connections: Count = described(256, "Most connections at a time.")
    stalled_seconds: Positive = described(
        30.0, "What a client may take to send a request, or to read on."
    )
    grace_seconds: Annotated[float, Field(ge=0)] = described(
        3.0, "What answers under way are given when the server is stopped."
    )

    flags: ClassVar = {"max_body_mib": "max_body"}

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
