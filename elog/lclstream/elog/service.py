"""The watcher as a service: with a health address, a status file and a ready file."""

import asyncio
import json
import logging
from typing import Any

from fastapi import FastAPI

from lclstream.core.files import announce, write_atomically
from lclstream.core.http import install_error_handlers
from lclstream.core.lifecycle import Service, Work
from lclstream.elog.config import WatchConfig
from lclstream.elog.watcher import Watcher
from lclstream.identity.caller import CallerDep
from lclstream.identity.web import WebService

logger = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0
"""How often the status file is replaced."""


def watch_service(config: WatchConfig) -> Service:
    """Return the watcher as a service; `lclstream.core.lifecycle.serve` runs it.

    Raises:
        InvalidConfigError: names what is wrong.
    """
    watcher = Watcher(config)

    async def announce_ready() -> None:
        await watcher.joined.wait()
        address = service.url if isinstance(service, WebService) else None
        announce(config.ready_file, {"url": address})

    async def write_status() -> None:
        while config.status_file is not None:
            content = json.dumps(watcher.status.document()).encode()
            try:
                write_atomically(config.status_file, content)
            except OSError as error:
                # A full disk must not end the watcher.
                logger.warning("status_not_written", extra={"reason": str(error)})
            await asyncio.sleep(STATUS_INTERVAL_S)

    # The watcher is first, so it ends last: its state shows until then.
    work: list[Work] = [watcher.run, announce_ready, write_status]
    health = config.health
    service: Service
    if health is None:
        service = Service(work)
    else:
        app = health_app(watcher)
        service = WebService(app, health.identity, health.host, health.port, work=work)
    return service


def health_app(watcher: Watcher) -> FastAPI:
    """Return an application that shows how a watcher stands at `/health`."""
    app = FastAPI(title="LCLStream run event watcher", docs_url=None, redoc_url=None)
    install_error_handlers(app)

    @app.get("/health")
    async def health(caller: CallerDep) -> dict[str, Any]:
        """Counters, lag and what is wrong, for anybody with a trusted certificate."""
        return watcher.status.document()

    return app
