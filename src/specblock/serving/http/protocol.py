"""HTTP connections on which nobody is waited for without end."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["protocol"]


def protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which leaves clients that take longer than ``seconds`` to send the lines
    of a request, or to read what was sent to them."""

    class Impatient(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._waiting = self.loop.call_later(seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            begun = self.conn.their_state is not h11.IDLE
            if begun and self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None
            elif not begun and self._waiting is None:  # a part of the lines of another request
                self._waiting = self.loop.call_later(seconds, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._waiting, self._unread):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

    return Impatient
