"""How a buffer is to work."""

import ssl
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lclstream.buffer.addresses import Address
from lclstream.core.errors import InvalidConfigError

MIB = 1024 * 1024
ANY_PORT = Address(host="127.0.0.1", first_port=0, last_port=0)


class Delivery(StrEnum):
    """What happens to messages that are with a consumer when it leaves."""

    FAST = "fast"
    """What was handed to its connection is gone with it; large messages never enter memory."""
    SAFE = "safe"
    """It goes to another consumer unless it was acknowledged: by an acknowledging consumer
    itself, for any other one by its kernel."""


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
    delivery: Delivery = Delivery.FAST
    digest: bool | None = None
    """Whether to compute the digest of what passes; None: if delivery is safe."""
    ack_window_bytes: int = 64 * MIB
    """What an acknowledging consumer may hold unacknowledged before it gets more."""
    ack_timeout_s: float = 0.0
    """Cut an acknowledging consumer that holds messages and acknowledges none for so long, and
    give them to others; 0: never, an analysis may take its time."""
    resume_timeout_s: float = 30.0
    """How long a producer of ours that has lost its connection may take to come back before it
    counts as gone."""
    dead_after_s: float = 30.0
    """How long the host of a peer may be silent although it was sent something."""
    sentinel: bool = False
    """Whether each consumer gets an empty message as its last one."""
    tls: ssl.SSLContext | None = None
    """Of a server; without it TLS is refused."""
    require_tls: bool = False
    """Whether connections without TLS are refused; they always are at addresses with `tls+tcp`,
    and if `allowed_names` are given."""
    allowed_names: tuple[str, ...] = ()
    """Names of which a peer's certificate must bear one; empty: any that the authority of
    `tls` has signed."""
    spill: Path | None = None
    """Folder for what does not fit into memory; None: producers wait instead."""
    spill_bytes: int = 0
    """Bound on what is spilled; 0: what the file system holds."""
    durable: Path | None = None
    """Folder of a journal from which a killed buffer goes on; None: memory only."""
    forward: tuple[Address, ...] = ()
    """Buffers downstream, which are dialled and get messages as consumers do."""
    forward_connections: int = 8
    """How many connections to each of them; 0: as many as `forward_rate_bytes` needs."""
    forward_rate_bytes: float = 1.25e9
    """What should go to each of them in a second."""
    fail_over_s: float = 10.0
    """After how long without one of several buffers downstream the others get its share."""

    @property
    def digests(self) -> bool:
        """Whether the digest is computed."""
        return self.delivery is Delivery.SAFE if self.digest is None else self.digest

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
            "ack_window_bytes": 1,
            "ack_timeout_s": 0,
            "resume_timeout_s": 0,
            "dead_after_s": 1,
            "spill_bytes": 0,
            "forward_connections": 0,
            "forward_rate_bytes": 0,
            "fail_over_s": 0,
        }
        problems = [
            f"{name} must be >= {least}, got {getattr(self, name)!r}"
            for name, least in limits.items()
            # Not a number is not less than anything either.
            if not getattr(self, name) >= least
        ]
        if self.require_tls and self.tls is None:
            problems.append("require_tls needs tls: a certificate to show to peers")
        if self.tls is None and any(address.tls for address in (*self.inputs, *self.outputs)):
            problems.append("addresses with tls+tcp:// need tls: a certificate to show to peers")
        if problems:
            raise InvalidConfigError("invalid buffer configuration", problems)
