"""The sources that go through the facility's own library; refused clearly where it is absent."""

from collections.abc import Iterator
from importlib.util import find_spec

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters
from lclstream.streamer.events import Event


class _PsanaEventSource:
    """Says why psana cannot be used, before anything is connected or read."""

    generation: int

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        del rank, size
        kind = parameters.event_source.type
        if find_spec("psana") is None:
            own = " XTC2 files can be read without psana: Xtc2EventSource."
            raise InvalidConfigError(
                f"{kind} needs psana{self.generation}, which is not installed in this environment."
                + (own if self.generation == 2 else "")
            )
        raise InvalidConfigError(f"{kind} is not supported by this version")

    def __iter__(self) -> Iterator[Event]:
        """Yield nothing."""
        return iter(())

    def close(self) -> None:
        """Do nothing: nothing is held."""


class Psana1EventSource(_PsanaEventSource):
    """LCLS-I data through psana1."""

    generation = 1


class Psana2EventSource(_PsanaEventSource):
    """LCLS-II data through psana2."""

    generation = 2
