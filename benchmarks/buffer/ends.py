"""Starting the ends of a measurement, producers and consumers, each a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("generators.c")
# What a sender that batches gives to the kernel in one call.
BATCH_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an end connects to and counts."""

    port: int
    listens: bool
    size_bytes: int
    batches: bool
    """Whether a sender puts many small messages into one call."""
    counters: Path
    slot: int


End = Callable[[str, Place], list[str]]
"""Takes `push` or `pull` and a place; returns a command."""


class Ends(NamedTuple):
    """How to start producers and consumers."""

    push: End
    pull: End


def build(folder: Path) -> Path:
    """Compile the generators.

    Raises:
        CalledProcessError: there is no C compiler, or it fails.
    """
    program = folder / "generators"
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        subprocess.run(
            ["cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-o", program, SOURCE, "-ldl"],
            check=True,
        )
    return program


def generator(program: Path, protocol: str, *options: str) -> End:
    """Return ends at the speed of C."""

    def command(role: str, place: Place) -> list[str]:
        batch = ["--batch", str(BATCH_BYTES)] if place.batches else []
        return [
            str(program), role,
            "--protocol", protocol,
            "--port", str(place.port),
            "--size", str(place.size_bytes),
            "--counters", str(place.counters),
            "--slot", str(place.slot),
            *batch,
            *(["--listen"] if place.listens else []),
            *options,
        ]  # fmt: skip

    return command


def python(kind: str) -> End:
    """Return ends in Python: `pynng`, `pyzmq` or `own`."""

    def command(role: str, place: Place) -> list[str]:
        return [
            sys.executable, "-m", "benchmarks.buffer.library_ends", kind, role,
            f"tcp://127.0.0.1:{place.port}",
            str(place.size_bytes), str(place.slot), str(place.counters),
            *(["--listen"] if place.listens else []),
        ]  # fmt: skip

    return command
