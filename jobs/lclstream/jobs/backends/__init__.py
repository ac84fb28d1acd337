"""The ways to run a job, one module each behind the protocol `Backend`.

`make` is the door for another one: add its type to `models.KNOWN_BACKENDS` and here.
"""

from lclstream.core.errors import InvalidConfigError
from lclstream.jobs.backends.local import LocalBackend
from lclstream.jobs.backends.protocol import Backend
from lclstream.jobs.backends.slurm import SlurmBackend
from lclstream.jobs.models import KNOWN_BACKENDS, BackendConfig


def make(name: str, config: BackendConfig) -> Backend:
    """Return the backend that a configuration describes."""
    if config.type == "local":
        return LocalBackend(config)
    if config.type == "slurm":
        return SlurmBackend(config)
    allowed = ", ".join(KNOWN_BACKENDS)
    raise InvalidConfigError(f"backends.{name}.type: got {config.type!r}; allowed: {allowed}")
