"""Errors in OpenAI's form, and streams of events.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "max_tokens", "code": null}}

The message is one line: what was given, what is allowed. Clients go by the status and the ``code``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from gpt2lab.server.batching import Generation

T = TypeVar("T")


class APIError(Exception):
    """A request that cannot be answered."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """Return it as a response."""
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(self.status)
        return json_response(self.body, self.status, headers)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a value as a response. Half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    return Response(json.dumps(value), status, headers, media_type="application/json")


class EventStream(StreamingResponse):
    """Values as server-sent events, ``data: JSON``. When the client has gone, what it waited for is cancelled."""

    def __init__(self, generation: Generation, values: AsyncIterator[Any]) -> None:
        self._generation = generation
        super().__init__(_lines(values), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        with self._generation:
            await super().__call__(scope, receive, send)


async def _lines(values: AsyncIterator[Any]) -> AsyncIterator[str]:
    """An error is the last event; only a stream without one ends with ``[DONE]``."""
    try:
        async for value in values:
            yield f"data: {json.dumps(value)}\n\n"
        yield "data: [DONE]\n\n"
    except APIError as error:
        yield f"data: {json.dumps(error.body)}\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what ``work`` returns; cancel it and return None if the client goes away first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
