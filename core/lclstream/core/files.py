"""Files that other processes read while we write them."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file beside its place and rename it there: a reader sees all of it or none.

    Args:
        path: the final place; its folder must exist.
        content: all bytes of the file.
        mode: permission bits; the file has them before it has its name.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def announce(ready_file: Path | None, content: dict[str, Any]) -> None:
    """Tell who waits that a service listens: one JSON object in its ready file, if it has one."""
    if ready_file is not None:
        write_atomically(ready_file, json.dumps(content).encode() + b"\n")
