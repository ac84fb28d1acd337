"""The transfers service as a process: web, store, sites and runners together."""

import fcntl
import logging
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from lclstream.core.errors import ConflictError, InvalidConfigError
from lclstream.core.files import announce, write_atomically
from lclstream.core.tls import check_private
from lclstream.identity.authority import Authority
from lclstream.identity.web import WebService
from lclstream.jobs.client import JobsClient
from lclstream.transfers.actions import Site
from lclstream.transfers.clock import steady_clock
from lclstream.transfers.config import SiteConfig, TransfersConfig
from lclstream.transfers.desk import Desk
from lclstream.transfers.routes import make_app
from lclstream.transfers.specs import Specs
from lclstream.transfers.store import StoreThread

logger = logging.getLogger(__name__)

SECRET_BYTES = 32


class TransfersService(WebService):
    """Serves transfers.

    Resource handling: owns the store, the connections to the sites and all runners; jobs go on
    when it ends, and the next service on the same database takes them over.

    Error handling: raises `InvalidConfigError` when the secret or the database cannot be used,
    `IdentityError` when an identity folder cannot, `UnavailableError` when the port is taken.
    """

    def __init__(self, config: TransfersConfig, sites: dict[str, SiteConfig]) -> None:
        self._config = config
        self._clients = {
            name: JobsClient(site.jobs, config.identity) for name, site in sites.items()
        }
        self._store = StoreThread(config.database)
        self._held = AsyncExitStack()
        authority = Authority.load(config.authority)
        specs = Specs(
            lambda: config.public_url or self.url,
            config.identity,
            authority,
            read_secret(secret_path(config)),
        )
        known = {name: Site(config=site, jobs=self._clients[name]) for name, site in sites.items()}
        self._desk = Desk(config, known, specs, self._store, authority.name, clock=steady_clock())
        app = make_app(self._desk)
        super().__init__(
            app, config.identity, config.host, config.port, work=[self._desk.runners.run]
        )

    async def started(self) -> None:
        """Open the store, listen, and tell so."""
        self._held.enter_context(sole_service(self._config.database))
        await self._held.enter_async_context(self._store)
        for client in self._clients.values():
            await self._held.enter_async_context(client)
        await super().started()
        announce(self._config.ready_file, {"url": self.url})
        logger.info("transfers_ready", extra={"url": self.url, "sites": sorted(self._clients)})

    async def stopped(self) -> None:
        """Close everything; jobs go on."""
        await super().stopped()
        await self._held.aclose()

    def close(self) -> None:
        """Ask the service to stop; clients that wait for news are answered at once."""
        self._desk.runners.release_waiters()
        super().close()


def secret_path(config: TransfersConfig) -> Path:
    """Return where the key lies that callback secrets are made from.

    Raises:
        InvalidConfigError: the database is no file and no place was configured.
    """
    if config.secret is not None:
        return config.secret
    if "://" in config.database:
        raise InvalidConfigError("secret: is required when the database is given by a URL")
    return Path(f"{config.database}.secret")


def read_secret(path: Path) -> bytes:
    """Return the key in a file of mode 0600, made if there is none.

    Raises:
        IdentityError: others may read it.
    """
    if not path.exists():
        write_atomically(path, secrets.token_bytes(SECRET_BYTES), mode=0o600)
    check_private(path)
    return path.read_bytes()


@contextmanager
def sole_service(database: str) -> Iterator[None]:
    """Keep a second service away from an SQLite file while the first one lives.

    Raises:
        ConflictError: another service works on it.
    """
    if "://" in database:
        yield
        return
    with Path(f"{database}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"another transfers service works on {database}") from None
        yield
