"""How the server serves; what each limit is for stands in ``docs/serving.md``."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import Field

from specblock.config import StrictConfig

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

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_running: Count = 16
    max_waiting: Annotated[int, Field(ge=0)] = 64
    max_prompt_tokens: Count | None = None
    max_output_tokens: Count = 2048
    max_n: Count = 8
    max_seconds: Positive = 600.0
    max_body_mib: Positive = 4.0
    max_connections: Count = 256
    grace_seconds: Annotated[float, Field(ge=0)] = 3.0
    stalled_seconds: Positive = 30.0

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
