"""Server-sent events, as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["DONE", "EventStream", "event"]

DONE = b"data: [DONE]\n\n"


def event(values: dict[str, Any]) -> bytes:
    """An event that holds a JSON object."""
    said = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + said.encode() + b"\n\n"


class EventStream(Response):
    """Sends ``events``; ``close`` is called at the end, whatever it is."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()
