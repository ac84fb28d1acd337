"""The configuration files of the transfers service and of its sites.

```yaml
host: 127.0.0.1
port: 4433
identity: /etc/lclstream/transfers          # folder with id.crt, id.key, ca.crt
authority: /etc/lclstream/authority         # signs the certificates of jobs
database: /var/lib/lclstream/transfers.db
admins: ["uid:mona"]
sites:
  - sites/s3df.yaml                         # beside this file
  - name: hpc
    jobs: https://login.example.org:4443
    backend: slurm
    launcher: srun -n {ranks}
    environment: {PATH: /opt/lclstream/bin:/usr/bin:/bin}
```
"""

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import StrictModel, parse, read_document
from lclstream.identity.roles import CallerName
from lclstream.transfers.models import (
    EnvironmentName,
    LimitsRequest,
    Name,
    checked_resources,
    without_reserved,
)
from lclstream.transfers.record import Limits


class SiteConfig(StrictModel):
    """One facility, as far as transfers need to know it."""

    name: Name
    jobs: str = Field(pattern=r"^https://[^/\s]+(/[^\s]*)?$")
    """URL of the site's jobs service."""
    backend: str = "default"
    """Backend of the jobs service for producers and consumers."""
    buffer_backend: str | None = None
    """Backend for buffers, on the transfer node; null = as for the others."""
    data_host: str = Field(default="127.0.0.1", pattern=r"^[A-Za-z0-9_.:\[\]-]+$")
    """Address on which buffers listen for data."""
    data_ports: str = Field(default="0", pattern=r"^(0|[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?)$")
    """Ports of buffers: `0` = any free one, or a range such as `42000-42999`."""
    buffer_memory: str = Field(default="256MiB", pattern=r"^[1-9][0-9]*(KiB|MiB|GiB)?$")
    """How much a buffer may hold before it lets producers wait."""
    environment: dict[EnvironmentName, str] = Field(default_factory=dict)
    """Variables of every job at the site; PATH must lead to `lclstream` and `python`."""
    launcher: str = ""
    """Command that starts the ranks of a streamer, e.g. `srun -n {ranks}` or
    `mpiexec -launcher fork -n {ranks}`; empty = one rank only."""
    python: str = "python"
    """The interpreter that runs the streamer."""
    lclstream: str = "lclstream"
    """The command that runs the buffer."""
    resources: dict[str, Any] = Field(default_factory=dict)
    """Fields of a job's ResourceSpec, for all jobs at the site."""
    attributes: dict[str, str] = Field(default_factory=dict)
    """Attributes of the backend, for producers and consumers."""

    @field_validator("environment")
    @classmethod
    def _not_ours(cls, value: dict[str, str]) -> dict[str, str]:
        return without_reserved(value)

    @field_validator("launcher")
    @classmethod
    def _knows_placeholders(cls, value: str) -> str:
        try:
            words = [word.format(ranks=1) for word in shlex.split(value)]
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"only the placeholder {{ranks}} is known: {error}") from None
        if words and "{ranks}" not in value:
            raise ValueError("must say {ranks}, the number of processes to start")
        return value

    @field_validator("resources")
    @classmethod
    def _fits_resource_spec(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_resources(value)


class TransfersConfig(StrictModel):
    """Configuration of the transfers service."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=4433, ge=0, le=65535)
    """0 = any free one; the ready file says which."""
    identity: Path
    """Folder with the service's id.crt, id.key and ca.crt."""
    authority: Path
    """Folder of the authority that signs the certificates of jobs."""
    database: str
    """Path of an SQLite file, or an SQLAlchemy URL such as `postgresql://...`."""
    secret: Path | None = None
    """File with the key that callback secrets are made from, mode 0600, made if missing; by
    default `<database>.secret` beside an SQLite file."""
    sites: Annotated[list[SiteConfig | str], Field(min_length=1)]
    """Sites, each written here or in a file of its own; the first is the default."""
    admins: frozenset[CallerName] = frozenset()
    """Callers such as `uid:mona` who see and cancel the transfers of others."""
    limits: LimitsRequest = Field(default_factory=LimitsRequest)
    """Time limits of every transfer; a request can lower them."""
    stop_s: float = Field(default=20.0, gt=0)
    """How long to wait for canceled jobs to end."""
    settle_s: float = Field(default=10.0, gt=0)
    """How long to wait for final reports after the last job has ended."""
    poll_s: float = Field(default=3.0, gt=0)
    """How often the jobs services are asked for states, in case a callback is lost."""
    answer_s: float = Field(default=60.0, gt=0)
    """How long a client without `hold` waits for the buffer's address."""
    public_url: str | None = Field(default=None, pattern=r"^https://[^/\s]+$")
    """URL under which jobs reach this service; null = the address it listens on."""
    ready_file: Path | None = None
    """Where to write `{"url": ...}` once the service listens."""

    def effective_limits(self, asked: LimitsRequest) -> Limits:
        """Return the limits of one transfer: the lower of the service's and the request's."""
        default = Limits(stop_s=self.stop_s, settle_s=self.settle_s)
        values = {"stop_s": self.stop_s, "settle_s": self.settle_s}
        for name in LimitsRequest.model_fields:
            own = getattr(self.limits, name)
            limit: float = getattr(default, name) if own is None else own
            wanted = getattr(asked, name)
            values[name] = limit if wanted is None else min(limit, wanted)
        return Limits(**values)


def load_config(path: Path) -> tuple[TransfersConfig, dict[str, SiteConfig]]:
    """Read the configuration and the site files that it names.

    Relative paths in it are relative to its folder.

    Returns:
        The configuration, and the sites by name in the order of the configuration.

    Raises:
        InvalidConfigError: a file is missing or does not fit; names every fault.
    """
    config = parse(TransfersConfig, read_document(path), str(path))
    sites = resolve_sites(config, path.parent)
    folder = path.parent.resolve()
    places = {
        name: folder / value
        for name in ("identity", "authority", "secret", "ready_file")
        if (value := getattr(config, name)) is not None
    }
    database = config.database if "://" in config.database else str(folder / config.database)
    return config.model_copy(update={**places, "database": database}), sites


def resolve_sites(config: TransfersConfig, folder: Path) -> dict[str, SiteConfig]:
    """Return the sites by name, reading those that stand in files of their own."""
    sites: dict[str, SiteConfig] = {}
    for entry in config.sites:
        site = entry if isinstance(entry, SiteConfig) else _load_site(folder / entry)
        if site.name in sites:
            raise InvalidConfigError(f"two sites are named {site.name!r}")
        sites[site.name] = site
    return sites


def _load_site(path: Path) -> SiteConfig:
    return parse(SiteConfig, read_document(path), str(path))
