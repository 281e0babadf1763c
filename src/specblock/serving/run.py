"""The server as a program: from a loaded speculator to its end by a signal."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from specblock.engine.speculator import Speculator
from specblock.errors import SpecBlockError
from specblock.serving.app import make_app
from specblock.serving.http.guards import Keys
from specblock.serving.http.protocol import protocol
from specblock.serving.service import Service, served_name
from specblock.serving.settings import ServingConfig

__all__ = ["serve"]

_log = logging.getLogger("specblock")
_SHUT_SECONDS = 2.0  # for connections to close after the time of grace


class _Server(uvicorn.Server):
    """Tells the service before it stops, and the caller once it listens."""

    def __init__(self, config: uvicorn.Config, service: Service, on_ready: Callable[[str], None]):
        super().__init__(config)
        self._service, self._on_ready = service, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host = self._service.config.host
            port = sockets[0].getsockname()[1]
            self._on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.begin_stop()
        await super().shutdown(sockets)


def serve(
    speculator: Speculator,
    model: str,
    config: ServingConfig,
    keys: Keys,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; saves what an adaptation has learned.

    Args:
        model: as it was asked for. on_ready: told the address.

    Raises:
        SpecBlockError: the address cannot be had.
        KeyboardInterrupt: it was Ctrl-C.
    """
    if not config.loopback and not keys:
        _log.warning(
            "Whoever reaches %s may use this server: --api-key-file asks for a key.", config.host
        )
    listening = _listen(config)
    service = Service(speculator, served_name(model), config)
    server = _Server(_uvicorn_config(config, make_app(service, keys)), service, on_ready)
    # uvicorn raises the signal that ended it once more; this one has done what it is for
    former = signal.signal(signal.SIGTERM, _nothing)
    try:
        server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, former)
        if service.stop():
            speculator.close()
        else:
            _log.warning(
                "A step did not end in time: what was learned since the last save is lost."
            )


def _uvicorn_config(config: ServingConfig, app: Callable) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol(config.stalled_seconds),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="error",  # requests that are none would fill a log
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=config.max_connections,
        timeout_graceful_shutdown=int(config.grace_seconds + _SHUT_SECONDS),
    )


def _listen(config: ServingConfig) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, number, _, address = found[0]
        listening = socket.socket(family, kind, number)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise SpecBlockError(
            f"{config.host} port {config.port} cannot be used ({error.strerror}): choose another "
            "--port or --host."
        ) from None
    return listening


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass
