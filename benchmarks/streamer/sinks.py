"""A process that takes messages and throws them away, and counts."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.buffer.counters import Counters
from benchmarks.buffer.measure import until

TIMEOUT_S = 60.0


@dataclass(slots=True)
class Sink:
    """The other end of a connection."""

    counters: Counters
    process: "subprocess.Popen[bytes]"
    sent: int = 0
    """Bytes that were sent to it; whoever sends counts them."""

    def settle(self) -> None:
        """Wait until all has arrived.

        Raises:
            BrokenMeasurementError: it does not.
        """
        until(
            lambda: self.counters.read(range(1)).bytes >= self.sent,
            TIMEOUT_S,
            "not all that was sent arrived",
            [self.process],
        )


@contextmanager
def sink(kind: str, url: str) -> Iterator[Sink]:
    """Start a process that connects to an address and pulls.

    Args:
        kind: of `benchmarks.buffer.library_ends`.
        url: where the sender listens.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        counters = stack.enter_context(Counters(folder / "counters", slots=1))
        module = "benchmarks.buffer.library_ends"
        process = subprocess.Popen(
            [sys.executable, "-m", module, kind, "pull", url, "0", "0", str(counters.path)]
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        until(
            lambda: counters.read(range(1)).ready > 0, TIMEOUT_S, "no receiver started", [process]
        )
        yield Sink(counters, process)
