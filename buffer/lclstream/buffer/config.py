"""How a buffer is to work."""

from dataclasses import dataclass

from lclstream.buffer.addresses import Address
from lclstream.core.errors import InvalidConfigError

MIB = 1024 * 1024
ANY_PORT = Address(host="127.0.0.1", first_port=0, last_port=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferConfig:
    """Addresses, bounds and times of a buffer; all times in seconds."""

    inputs: tuple[Address, ...] = (ANY_PORT,)
    """Where producers push to."""
    outputs: tuple[Address, ...] = (ANY_PORT,)
    """Where consumers pull from."""
    advertised_host: str | None = None
    """Host name in the URLs that are given to others; None: the one that is bound."""
    memory_bytes: int = 256 * MIB
    """Bound on everything that is held. Producers are not read from while it is reached."""
    max_message_bytes: int = 1024 * MIB
    """A producer that announces a larger message is cut off. One message may be larger than
    `memory_bytes`: it is then served alone."""
    expect_producers: int = 0
    """Drain when so many connections have delivered messages and all are gone; 0: not so."""
    grace_s: float = 2.0
    """How long all producers must have been gone for that."""
    max_idle_s: float = 0.0
    """Drain when nothing has come or gone for so long; 0: never."""
    stall_timeout_s: float = 60.0
    """While it drains: give up when no byte has moved for so long."""
    consumer_timeout_s: float = 600.0
    """While it drains: how long to wait for a consumer if there is none."""
    linger_s: float = 10.0
    """If no consumer ever came and nothing is to be delivered: how long late ones still get a
    proper end of stream."""
    farewell_timeout_s: float = 30.0
    """How long consumers have to close their connections after the end of the stream."""

    def __post_init__(self) -> None:
        limits = {
            "memory_bytes": 1,
            "max_message_bytes": 1,
            "expect_producers": 0,
            "grace_s": 0,
            "max_idle_s": 0,
            "stall_timeout_s": 0,
            "consumer_timeout_s": 0,
            "linger_s": 0,
            "farewell_timeout_s": 0,
        }
        problems = [
            f"{name} must be >= {least}, got {getattr(self, name)!r}"
            for name, least in limits.items()
            # Not a number is not less than anything either.
            if not getattr(self, name) >= least
        ]
        if problems:
            raise InvalidConfigError("invalid buffer configuration", problems)
