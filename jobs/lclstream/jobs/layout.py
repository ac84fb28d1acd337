"""Names of the files in a job's folder.

Those of psik lie in the folder itself; ours lie in `.lclstream`, which only the owner may
enter: the job's owner and secrets, what was asked of it, and which process runs it.
"""

from pathlib import Path

SPEC = "spec.json"
STATUS = "status.csv"
SCRIPT = "script"
WORK = "work"
LOG = "log"
CONSOLE = "console"
PRIVATE = ".lclstream"


def owner_file(folder: Path) -> Path:
    """Return where the owner and the idempotency key of a job stand."""
    return folder / PRIVATE / "owner.json"


def secret_file(folder: Path) -> Path:
    """Return where the secrets of a job's callbacks stand."""
    return folder / PRIVATE / "secret.json"


def lock_file(folder: Path) -> Path:
    """Return the file whose lock whoever starts, cancels or removes a job holds."""
    return folder / PRIVATE / "lock"


def cursor_file(folder: Path) -> Path:
    """Return where the number of callbacks already delivered stands."""
    return folder / PRIVATE / "callbacks.json"


def submit_mark(folder: Path, jobndx: int) -> Path:
    """Return the file that says: this run was asked for."""
    return folder / PRIVATE / f"submit.{jobndx}"


def cancel_mark(folder: Path, jobndx: int) -> Path:
    """Return the file that says: this run shall end."""
    return folder / PRIVATE / f"cancel.{jobndx}"


def claim_file(folder: Path, jobndx: int) -> Path:
    """Return the file that the one runner of a run made: its process and native id."""
    return folder / PRIVATE / f"run.{jobndx}.json"


def spawn_file(folder: Path, jobndx: int) -> Path:
    """Return where a backend notes which process it made."""
    return folder / PRIVATE / f"spawn.{jobndx}.json"


def batch_file(folder: Path, jobndx: int) -> Path:
    """Return the script that a batch system gets; its path is how a lost run is found."""
    return folder / PRIVATE / f"batch.{jobndx}"
