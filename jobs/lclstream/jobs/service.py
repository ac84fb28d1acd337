"""The jobs service: REST in front, the supervisor behind, one prefix of job folders below."""

from contextlib import ExitStack

from lclstream.core.errors import InvalidConfigError
from lclstream.core.files import announce
from lclstream.identity.web import WebService
from lclstream.jobs.admission import check_roots
from lclstream.jobs.callbacks import Sender
from lclstream.jobs.control import JobControl
from lclstream.jobs.models import ServiceConfig
from lclstream.jobs.routes import application
from lclstream.jobs.supervisor import Supervisor


class JobsService(WebService):
    """Serves the jobs below one prefix.

    Resource handling: holds the prefix's lock, threads, tasks and connections until it is
    closed. Jobs do not belong to it: they go on when it ends, and it finds them again.

    Error handling: raises `ConflictError` when another service works on the prefix,
    `IdentityError` when its identity cannot be used, `UnavailableError` when the port is taken.
    """

    def __init__(self, config: ServiceConfig) -> None:
        if config.identity is None:
            raise InvalidConfigError("identity: is required to serve")
        kept = {"prefix": config.prefix, "identity": config.identity}
        check_roots(config.directories, kept)
        self.config = config
        self._sender = Sender(config.identity)
        self.supervisor = Supervisor(JobControl(config), self._sender)
        self._held = ExitStack()
        work = [self.supervisor.follow, self.supervisor.reconcile]
        app = application(self.supervisor)
        super().__init__(app, config.identity, config.host, config.port, work=work)

    async def started(self) -> None:
        """Take the prefix, read its jobs, listen."""
        self._held.enter_context(self.supervisor.control.store.service_lock())
        self.supervisor.control.store.clear_remains()
        await self.supervisor.open()
        await super().started()
        announce(self.config.ready_file, {"url": self.url})

    async def stopped(self) -> None:
        """Give everything back; jobs go on."""
        with self._held:
            await super().stopped()
            await self.supervisor.close()
            await self._sender.__aexit__()
