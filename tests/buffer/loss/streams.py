"""Steps that the loss cases share."""

import re
import socket
from collections.abc import Sequence

from tests.buffer.loss.nursery import PeerProcess
from tests.buffer.loss.oracle import Stream

KINDS = ("pynng", "pyzmq", "own")
DELIVERY_ERROR = re.compile(r"DeliveryError (\d+) messages not delivered")


def digests(*producers: PeerProcess) -> list[str]:
    """Return the md5 of all that producers are to send."""
    return [
        digest
        for producer in producers
        for digest in Stream(producer.orders.producer, producer.orders.sizes).digests()
    ]


def gather(*consumers: PeerProcess) -> list[str]:
    """Have consumers end, and return the md5 of all that they got."""
    for consumer in consumers:
        consumer.tell("stop")
    for consumer in consumers:
        consumer.wait()
    return [digest for consumer in consumers for digest in consumer.got()]


def claimed(producer: PeerProcess) -> int:
    """Return how many messages one of our producers says are delivered."""
    undelivered = DELIVERY_ERROR.search(producer.how)
    return len(producer.said("sent")) - (int(undelivered[1]) if undelivered else 0)


def refuses(url: str) -> bool:
    host, port = url.removeprefix("tcp://").split(":")
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) != 0


def totals(peers: Sequence[dict[str, int | str]], side: str) -> int:
    """Return the messages of all connections of one side of a report."""
    return sum(int(peer["messages"]) for peer in peers if peer["side"] == side)
