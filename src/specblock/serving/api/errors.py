"""Errors as the API's error object."""

from __future__ import annotations

from typing import Any

from specblock.errors import SpecBlockError

__all__ = ["ApiError", "as_api_error"]

RETRY_SECONDS = 2  # what a refused client is advised to wait


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP. message: one sentence for the caller.
        kind: the API's ``type``. param: the field it is about. code: for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        # a name in the request may hold half a character, which no answer can
        said = [
            None if part is None else part.encode("utf-8", "replace").decode()
            for part in (str(self), self.kind, self.param, self.code)
        ]
        return {"error": dict(zip(("message", "type", "param", "code"), said, strict=True))}

    @classmethod
    def busy(cls, status: int, message: str, code: str) -> ApiError:
        """Not now: try again later."""
        kind = "rate_limit_error" if status == 429 else "service_unavailable_error"
        return cls(status, message, kind, code=code, headers={"Retry-After": str(RETRY_SECONDS)})


def as_api_error(error: Exception) -> ApiError:
    """Any error as the API says it; what is not the caller's fault is not described to them."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, SpecBlockError):
        return ApiError(400, str(error))
    return ApiError(500, "The server failed; its log says how.", "server_error")
