"""One round: producers and consumers of every kind, and random kills among them."""

import random
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.buffer.loss.nursery import Nursery, PeerProcess, Process, RelayProcess, until
from tests.buffer.loss.oracle import MIB, Stream, Verdict, judge, random_sizes

MESSAGES_EACH = 12
BYTES_EACH = 20 * MIB
RECONNECT_S = 60.0
ALL_KINDS = ("pynng", "pyzmq", "own")
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("produce", "safe"): {"delivery": "safe", "reconnect_timeout_s": RECONNECT_S},
    ("consume", "safe"): {"acknowledge": True, "reconnect_timeout_s": RECONNECT_S},
}


@dataclass
class Round:
    """What happens in a round, all of it from its seed but for the speed of the machine.

    Args:
        kinds: of the producers and of the consumers, three of each.
        mortal: roles and kinds that may be killed; `buffer` for the buffer.
        options: of the buffer.
    """

    nursery: Nursery
    seed: int
    kinds: tuple[str, ...]
    mortal: tuple[tuple[str, str], ...]
    options: tuple[str, ...]
    producers: list[PeerProcess] = field(default_factory=list)
    consumers: list[PeerProcess] = field(default_factory=list)
    killed: list[Process] = field(default_factory=list)
    has_fallen: bool = False
    """Whether the buffer was killed."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311
        self.memory = self.random.choice(["1MiB", "8MiB", "64MiB"])
        self.kills = self.random.randrange(1, 5) if self.seed else 0

    def run(self) -> None:
        """Stream until every producer has ended or is killed, then drain."""
        self.relay = self._serve()
        kinds = [kind for kind in self.kinds for _ in range(3)]
        for kind in kinds:
            self._consume(kind)
        for number, kind in enumerate(kinds):
            self._produce(kind, number)
        self._kill_some()
        for producer in self.producers:
            producer.wait()
        self.relay.terminate()
        until(self._is_over)
        self.code, self.report = self.relay.finish()
        for consumer in self.consumers:
            consumer.tell("stop")
        for consumer in self.consumers:
            consumer.wait()

    def _is_over(self) -> bool:
        """Look for the end; those who took a killed buffer's silence for it get a successor."""
        if self.relay.poll() is not None:
            return True
        if self.has_fallen and all(consumer.poll() is not None for consumer in self.consumers):
            self._consume(self.kinds[-1])
        return False

    def _serve(self, *addresses: str) -> RelayProcess:
        return self.nursery.relay(
            "--memory", self.memory, "--term-timeout", "60", "--resume-timeout", "2",
            *addresses, *self.options,
        )  # fmt: skip

    def _produce(self, kind: str, number: int) -> None:
        sizes = random_sizes(f"{self.seed}/{number}", MESSAGES_EACH, BYTES_EACH)
        self.producers.append(
            self.nursery.produce(
                kind,
                self.relay.push_url,
                producer=number,
                sizes=sizes,
                send_buffer=self.random.choice([0, 4]),
                options=OPTIONS.get(("produce", kind), {}),
            )
        )

    def _consume(self, kind: str) -> None:
        options = OPTIONS.get(("consume", kind), {})
        self.consumers.append(self.nursery.consume(kind, self.relay.pull_url, options=options))

    # Kills.

    def _kill_some(self) -> None:
        """Kill at moments that depend on how far all of them have come."""
        total = 3 * len(self.kinds) * MESSAGES_EACH
        for moment in sorted(self.random.randrange(total * 3 // 4) for _ in range(self.kills)):
            until(partial(self._is_time, moment))
            victims = self._victims()
            if victims:
                self._kill(self.random.choice(victims))

    def _is_time(self, moment: int) -> bool:
        got = sum(len(consumer.said("got")) for consumer in self.consumers)
        return got >= moment or all(producer.poll() is not None for producer in self.producers)

    def _victims(self) -> list[Process]:
        peers = [
            peer
            for peer in self.producers + self.consumers
            if (peer.orders.role, peer.orders.kind) in self.mortal and peer.poll() is None
        ]
        return [*peers, *([self.relay] * len(peers) if ("buffer", "") in self.mortal else [])]

    def _kill(self, victim: Process) -> None:
        victim.kill()
        self.killed.append(victim)
        if victim is self.relay:
            self.has_fallen = True
            addresses = ("--in", self.relay.push_url, "--out", self.relay.pull_url)
            self.relay = self._serve(*addresses)
        elif isinstance(victim, PeerProcess) and victim.orders.role == "consume":
            self._consume(victim.orders.kind)

    # What came of it.

    @property
    def got(self) -> list[str]:
        return [digest for consumer in self.consumers for digest in consumer.got()]

    @property
    def streams(self) -> dict[int, list[str]]:
        return {
            producer.orders.producer: Stream(
                producer.orders.producer, producer.orders.sizes
            ).digests()
            for producer in self.producers
        }

    def verdict(self) -> Verdict:
        return judge(self.streams, self.got)

    def told(self) -> str:
        """Say what happened, for who has to find out why."""
        peers = "\n".join(
            f"{peer.folder.name} {peer.orders.role} {peer.orders.producer}: "
            f"{'KILLED' if peer.killed else peer.how}, sent {len(peer.said('sent'))}, "
            f"got {len(peer.said('got'))}, ports {peer.ports}"
            for peer in self.producers + self.consumers
        )
        return (
            f"seed {self.seed}, memory {self.memory}, exit code {self.code}, "
            f"{len(self.killed)} killed\n{peers}\n{self.report}\nin {self.relay.folder}\n"
            f"{self.verdict()}"
        )

    def delivered_to_the_dead(self) -> int:
        """Return how many messages the report says were written to consumers that were killed.

        One that was killed at once may not have come to say from which port it was connected.
        """
        alive = {port for each in self.consumers if not each.killed for port in each.ports}
        return sum(
            peer["messages"]
            for peer in self.report["peers"]
            if peer["side"] == "out" and port_of(peer) not in alive
        )


def port_of(peer: dict[str, Any]) -> int:
    return int(peer["address"].rpartition(":")[2])
