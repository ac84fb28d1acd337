"""Durable buffers in processes that start at once: one that has imported everything forks them.

Of the service they have only the engine. Run as a program this is the process that forks.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


class Forks:
    """Starts buffers; all that are left are killed at the end."""

    def __init__(self) -> None:
        self.started: list[ForkedBuffer] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.buffer.forked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in self.started:
            each.kill()
        self._process.communicate()

    def start(self, journal: Path, memory_bytes: int) -> "ForkedBuffer":
        """Start a buffer; returns when it listens."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ready = journal.with_name("ready")
        ready.unlink(missing_ok=True)
        order = {"journal": str(journal), "memory_bytes": memory_bytes}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        buffer = ForkedBuffer(int(self._process.stdout.readline()), journal)
        self.started.append(buffer)
        buffer.addresses = buffer.wait_for(ready)
        return buffer


class ForkedBuffer:
    """A buffer in a process of its own."""

    def __init__(self, pid: int, journal: Path) -> None:
        self.addresses: list[str] = []
        """Where to push and where to pull."""
        self._pid = pid
        self._report = journal.with_name("report")
        self._report.unlink(missing_ok=True)

    def kill(self) -> None:
        if self._is_alive():
            os.kill(self._pid, signal.SIGKILL)
            self._wait(lambda: not self._is_alive())

    def finish(self) -> dict[str, Any]:
        """Have it drain; return the final report."""
        os.kill(self._pid, signal.SIGTERM)
        report: dict[str, Any] = self.wait_for(self._report)
        return report

    def wait_for(self, path: Path) -> Any:
        self._wait(lambda: path.exists() or not self._is_alive())
        return json.loads(path.read_text())

    def _is_alive(self) -> bool:
        return Path(f"/proc/{self._pid}").exists()

    def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)


def main() -> None:
    import lclstream.buffer.relay

    del lclstream
    # The kernel buries the children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                serve(**json.loads(line))
            finally:
                os._exit(1)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def serve(journal: str, memory_bytes: int) -> None:
    from lclstream.buffer.config import BufferConfig, Delivery
    from lclstream.buffer.relay import Buffer

    os.close(0)
    folder = Path(journal)
    config = BufferConfig(
        durable=folder, delivery=Delivery.SAFE, memory_bytes=memory_bytes, linger_s=0.1
    )
    with Buffer(config) as buffer:
        signal.signal(signal.SIGTERM, lambda *_: buffer.drain())
        put(folder.with_name("ready"), [*buffer.push_urls, *buffer.pull_urls])
        buffer.wait()
        put(folder.with_name("report"), buffer.statistics().whole())


def put(path: Path, value: object) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value))
    new.rename(path)


if __name__ == "__main__":
    main()
