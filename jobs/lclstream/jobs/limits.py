"""A bound on what a request may bring, whatever it says about its length."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

TOO_LARGE = 413


class BodyLimit:
    """An ASGI application that refuses bodies above a limit with 413.

    Args:
        app: what is protected.
        limit_of: returns the most bytes that a request to a path may bring.
    """

    def __init__(self, app: Application, limit_of: Callable[[str], int]) -> None:
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        got = 0

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > limit:
                # The one exception that FastAPI lets through while it reads a body.
                raise HTTPException(TOO_LARGE, f"the request is larger than {limit} bytes")
            return message

        await self._app(scope, counted, send)
