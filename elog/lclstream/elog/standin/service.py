"""The stand-in as a service: HTTPS in front, Kafka behind."""

from collections.abc import Sequence

from lclstream.core.files import announce
from lclstream.core.lifecycle import Work
from lclstream.elog.standin.config import StandinConfig
from lclstream.elog.standin.logbook import Logbook
from lclstream.elog.standin.publisher import Publisher
from lclstream.elog.standin.routes import standin_app
from lclstream.identity.web import WebService


class Standin(WebService):
    """Serves the stand-in; tells its address in the ready file when it answers."""

    def __init__(
        self, config: StandinConfig, logbook: Logbook, *, work: Sequence[Work] = ()
    ) -> None:
        """Describe the service; `work` runs beside it."""
        app = standin_app(logbook, config.user_header)
        super().__init__(app, config.identity, config.host, config.port, work=work)
        self.logbook = logbook
        self._ready_file = config.ready_file

    async def started(self) -> None:
        """Listen, then say so."""
        await super().started()
        announce(self._ready_file, {"url": self.url})


def standin_service(config: StandinConfig) -> Standin:
    """Return the stand-in with an empty logbook."""
    options = {"bootstrap.servers": config.kafka, **config.kafka_options}
    publisher = Publisher(options, config.misbehaviour)
    logbook = Logbook(publisher.publish, locations=config.locations, string_runs=config.string_runs)
    return Standin(config, logbook, work=[publisher.run])
