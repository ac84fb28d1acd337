"""Ranks of the streamer in processes that start at once: one that has imported everything forks.

Each of them can be killed without the others. Run as a program this is the process that forks.
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


class Ranks:
    """Starts ranks; all that are left are killed at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[ForkedRank] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.streamer.forked_ranks"],
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
        self.kill_all()
        self._process.communicate()

    def kill_all(self) -> None:
        for each in self._started:
            each.kill()

    def start(self, document: dict[str, Any], rank: int, size: int, *options: str) -> "ForkedRank":
        """Start one rank with options of `lclstream streamer run`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        name = self._folder / f"rank{len(self._started)}"
        config = name.with_suffix(".json")
        config.write_text(json.dumps(document))
        order = {
            "rank": rank, "size": size, "name": str(name),
            "arguments": ["-c", str(config), *options],
        }  # fmt: skip
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        self._started.append(ForkedRank(int(self._process.stdout.readline()), name))
        return self._started[-1]


class ForkedRank:
    """A rank in a process of its own."""

    def __init__(self, pid: int, name: Path) -> None:
        self._pid, self._name = pid, name

    @property
    def log(self) -> str:
        return self._name.with_suffix(".log").read_text()

    @property
    def end(self) -> dict[str, Any]:
        """Its last line."""
        return dict(json.loads(self.log.strip().splitlines()[-1]))

    @property
    def is_alive(self) -> bool:
        return Path(f"/proc/{self._pid}").exists()

    def kill(self) -> None:
        """Kill it, as `kill -9` does."""
        if self.is_alive:
            os.kill(self._pid, signal.SIGKILL)
            self._wait()

    def wait(self) -> int:
        """Return its exit code."""
        self._wait()
        return int(self._name.with_suffix(".code").read_text())

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.is_alive:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.005)


def main() -> None:
    import h5py

    import lclstream.buffer.endpoints
    import lclstream.streamer.handlers.files
    import lclstream.streamer.handlers.nng
    import lclstream.streamer.run
    import lclstream.streamer.serializers.hdf5
    import lclstream.streamer.sources.simulated

    del h5py, lclstream
    # The kernel buries the children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                run(**json.loads(line))
            finally:
                os._exit(1)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def run(rank: int, size: int, name: str, arguments: list[str]) -> None:
    from lclstream.streamer.__main__ import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.close(0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"PMI_RANK": str(rank), "PMI_SIZE": str(size)}
    sys.argv = ["streamer", *arguments]
    try:
        code = main()
    except SystemExit as error:
        code = int(error.code or 0)
    sys.stderr.flush()
    Path(f"{name}.code").write_text(str(code))


if __name__ == "__main__":
    main()
