"""What the command line adds to a configuration."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How one run of a configuration differs from another."""

    limit: int = 0
    """Events that each rank reads at most; 0 = all."""
    resume_from: int = 0
    """Events with a smaller index are left out: they were delivered before."""
    resume_file: Path | None = None
    """Where to remember which events were delivered, and to continue from what is there."""
    metrics: str = ""
    """`HOST:PORT` where to tell of the rank by HTTP; empty = nowhere."""
    progress_s: float = 0.0
    """How often to write a line about the rank; 0 = never."""
