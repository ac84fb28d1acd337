"""Which messages a test sends, and what has become of them; shares no code with the buffer.

A message is known by the md5 of all its bytes. It begins with who sends it and its number, as
far as it is long enough, so that only the shortest ones may look alike: those are counted.
"""

import hashlib
import random
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

KIB = 1024
MIB = 1024 * KIB
LARGEST = 16 * MIB
# From here on a message holds its producer and its number; shorter ones may look alike.
DISTINCT_BYTES = 8
HEAD = struct.Struct(">IIQ")
NOISE = random.Random(0).randbytes(LARGEST + MIB)  # noqa: S311
EDGES = (0, 1, 255, 256, 131_063, 131_064, 131_071, 131_072, 131_073, MIB)


def payload(producer: int, sequence: int, size: int) -> bytes:
    """Return one message; the same again for the same arguments."""
    head = HEAD.pack(producer, sequence, size)
    offset = (producer * 7919 + sequence * 104_729) % MIB
    return (head + NOISE[offset : offset + max(size - len(head), 0)])[:size]


def md5(data: bytes | memoryview) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def random_sizes(seed: str, count: int, budget_bytes: int) -> list[int]:
    """Return sizes from 0 to 16 MiB, of every order of magnitude, that fit into a budget."""
    source = random.Random(seed)  # noqa: S311
    sizes = []
    for _ in range(count):
        size = source.choice(EDGES) if source.random() < 0.2 else round(2 ** source.uniform(0, 24))
        if size > budget_bytes:
            size = source.randrange(1000)
        budget_bytes = max(budget_bytes - size, 0)
        sizes.append(size)
    return sizes


@dataclass(frozen=True)
class Stream:
    """All that one producer is to send."""

    producer: int
    sizes: Sequence[int]

    def digests(self) -> list[str]:
        return [md5(payload(self.producer, number, size)) for number, size in enumerate(self.sizes)]


@dataclass
class Verdict:
    """How what came differs from what was sent; names are `producer/number`."""

    lost: list[str] = field(default_factory=list)
    twice: Counter[str] = field(default_factory=Counter)
    """By md5: how many more came than were sent."""
    unknown: list[str] = field(default_factory=list)
    """Came and was never sent: torn, mixed or altered."""


def judge(streams: Mapping[int, Sequence[str]], got: Iterable[str]) -> Verdict:
    """Compare the md5 of everything that was sent, by producer, with those of all that came."""
    names: dict[str, list[str]] = {}
    for producer, digests in streams.items():
        for number, digest in enumerate(digests):
            names.setdefault(digest, []).append(f"{producer}/{number}")
    counts = Counter(got)
    verdict = Verdict(unknown=[digest for digest in counts if digest not in names])
    for digest, sent in names.items():
        # Which ones of several that are alike are missing cannot be told, nor matters it.
        verdict.lost += sent[counts[digest] :]
        if counts[digest] > len(sent):
            verdict.twice[digest] = counts[digest] - len(sent)
    return verdict
