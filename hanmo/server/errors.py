"""Errors with an HTTP status, in the form that OpenAI's clients read."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from hanmo.errors import CheckpointError, HanmoError, MemoryPlanError, QueueFull, SchedulerClosed


class RequestError(HanmoError):
    """A request that is not answered.

    param: the field that is wrong.   code: for programs.   retry_after: seconds.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the answer, with more headers."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        found |= {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return JSONResponse(self.body(), self.status, {**(headers or {}), **found})


def as_request_error(error: HanmoError, *, generating: bool = False) -> RequestError:
    """Give an error of the library its status.

    generating: whether rows were already running, when a checkpoint that is wrong is no fault of the request.
    """
    if isinstance(error, RequestError):
        return error
    message = " ".join(str(error).split())
    if isinstance(error, QueueFull):
        return RequestError(message, status=429, code="queue_full", retry_after=1)
    if isinstance(error, SchedulerClosed):
        return RequestError(message, status=503, code="shutting_down", retry_after=5)
    if isinstance(error, MemoryPlanError):
        return RequestError(message, status=503, code="out_of_memory", retry_after=5)
    if generating and isinstance(error, CheckpointError):
        return RequestError(message, status=500)
    return RequestError(message)
