"""A receiver of callbacks behind mutual TLS, which can be told to refuse."""

from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, Request, Response

from lclstream.identity.caller import CallerDep
from lclstream.identity.web import WebService


@dataclass
class Received:
    """One callback as it came."""

    body: bytes
    headers: dict[str, str]
    caller: str


@dataclass
class Sink:
    """What a receiver got, and how it answers."""

    got: list[Received] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    """Statuses of the next answers; 204 when there are none left."""

    def service(self, identity: Path) -> WebService:
        """Return the receiver."""
        app = FastAPI()

        @app.post("/cb")
        async def receive(request: Request, caller: CallerDep) -> Response:
            headers = {key.lower(): value for key, value in request.headers.items()}
            self.got.append(Received(await request.body(), headers, caller.name))
            return Response(status_code=self.answers.pop(0) if self.answers else 204)

        return WebService(app, identity)
