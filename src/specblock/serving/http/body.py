"""Reading a request's body, no further than its limit and no longer than a client may take."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from specblock.serving.api.errors import ApiError

__all__ = ["read_body"]

_CLOSE = {"Connection": "close"}  # the rest of the body is not read


async def read_body(request: Request, most_bytes: int, seconds: float) -> bytes:
    """The body of a JSON request.

    Raises:
        ApiError: it is no JSON, larger than ``most_bytes``, takes longer than ``seconds``, or its
            client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # browsers send anything else from any page to any address
        raise ApiError(415, "The header Content-Type must be application/json.", headers=_CLOSE)
    too_large = ApiError(
        413, f"The body is larger than the {most_bytes} bytes that are read.", headers=_CLOSE
    )
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError:
        words = f"The body did not come within {seconds:g} seconds."
        raise ApiError(408, words, headers=_CLOSE) from None
    except ClientDisconnect:
        raise ApiError(400, "The client has gone.", headers=_CLOSE) from None
    return bytes(body)
