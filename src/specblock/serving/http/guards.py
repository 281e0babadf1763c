"""Who may ask: keys, and the names by which a server of this machine alone is called."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specblock.errors import ConfigError
from specblock.serving.api.errors import ApiError

__all__ = ["HostGuard", "Keys"]

_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Keys:
    """The keys of a file, one a line; none without a file, and then all may ask.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """

    def __init__(self, path: Path | None):
        self._digests: list[bytes] = []
        if path is None:
            return
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The keys in {path} cannot be read: {error}.") from None
        if any(not line.isascii() for line in lines):
            raise ConfigError(
                f"{path} holds a key with characters that no request can carry: write keys of "
                "ASCII alone."
            )
        self._digests = [_digest(line.strip()) for line in lines if line.strip()]
        if not self._digests:
            raise ConfigError(
                f"{path} holds no key: write one a line, or leave out --api-key-file."
            )

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, connection: HTTPConnection) -> None:
        """Raises :class:`ApiError` unless the request carries a key, where there are any."""
        if not self._digests:
            return
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        # all are compared, each in constant time
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            raise ApiError(
                401,
                "The key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
                "authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class HostGuard:
    """Refuses requests by another name than this machine's own, where only it can be reached.

    A page of somebody else's may let its own name point here; the browser then takes this server
    for the page's. Also tells browsers to take answers for nothing but what they say they are.
    """

    def __init__(self, app: ASGIApp, host: str, guarded: bool):
        self._app, self._names = app, _OWN_NAMES | {host.lower()}
        self._guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        if self._guarded and _name(Headers(scope=scope).get("host", "")) not in self._names:
            error = ApiError(403, "This server answers to the names of its own machine only.")
            await JSONResponse(error.body, error.status)(scope, receive, with_header)
            return
        await self._app(scope, receive, with_header)


def _name(host: str) -> str:
    """Without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
