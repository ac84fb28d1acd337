"""What callers, sites and peers write: the models of psik 3, with its names and key order.

`JobSpec` is the content of `spec.json`, `Callback` the body of a callback, `Config` the
configuration that psik reads, `ServiceConfig` the same with what our service needs besides.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_serializer,
    field_validator,
    model_validator,
)

from lclstream.core.models import StrictModel
from lclstream.identity.roles import CallerName
from lclstream.jobs.states import JobState, Transition

__all__ = [
    "BackendConfig",
    "Callback",
    "Config",
    "ExtraInfo",
    "FileStat",
    "JobId",
    "JobSpec",
    "JobState",
    "JobStepInfo",
    "ResourceSpec",
    "ServiceConfig",
    "SystemStatus",
    "Transition",
]

MIB = 1 << 20
# Nineteen years; clocks of the kernel cannot count ten times as much.
LONGEST_MINUTES = 10_000_000

JobId = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?$")]
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NO_NUL = StringConstraints(pattern=r"^[^\x00]*$")
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Text without control characters: it ends up in commands, headers or one line of a log."""
Text = Annotated[str, NO_NUL]


class ResourceSpec(BaseModel):
    """What a job asks of its batch system; unknown fields are ignored, as psik does."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    duration: int = Field(default=10, ge=1, le=LONGEST_MINUTES)
    """Time limit in minutes."""
    node_count: int | None = Field(default=None, ge=1)
    """Nodes; null leaves it to the batch system."""
    process_count: int | None = Field(default=None, ge=1)
    """Processes; excludes node_count with processes_per_node. One process if neither is given."""
    processes_per_node: int | None = Field(default=None, ge=1)
    """Processes on each node."""
    cpu_cores_per_process: int = Field(default=1, ge=0)
    """CPU cores for each process; 0 leaves it to the batch system."""
    gpu_cores_per_process: int = Field(default=0, ge=0)
    """GPUs for each process."""
    exclusive_node_use: bool = True
    """Whether no other job may run on the same nodes."""

    @model_validator(mode="after")
    def _one_way_to_count(self) -> Self:
        if self.process_count is not None and self.processes_per_node is not None:
            raise ValueError("process_count excludes node_count with processes_per_node, got both")
        return self


class JobSpec(StrictModel):
    """A script to run, where, with what, and whom to tell."""

    name: Line | None = Field(default=None, max_length=200)
    """For people; also the name in the batch system."""
    directory: Text | None = None
    """Where the script runs; null: a fresh folder `work` inside the job's own folder."""
    script: Text
    """Shell script, or a script of the interpreter named in its first line (`#!`)."""
    environment: dict[str, Text] = Field(default_factory=dict)
    """Variables of the script, over all others."""
    inherit_environment: bool = True
    """Whether the script gets PATH, HOME, the language and modules of the service's
    environment; false starts with an empty one. Never more than that."""
    resources: ResourceSpec = ResourceSpec()
    """Size and time."""
    backend: str = "default"
    """Name of a backend in the configuration."""
    attributes: dict[str, Line] = Field(default_factory=dict)
    """Options of the backend, such as `--comment`; each must be on the site's list."""
    callback: Line | None = None
    """URL that gets a POST for every new state."""
    cb_headers: dict[str, Line] = Field(default_factory=dict)
    """Headers sent with each callback."""
    cb_secret: SecretStr | None = None
    """Key of the callbacks' signature."""

    @field_validator("environment")
    @classmethod
    def _are_variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of an environment variable")
        return value

    @field_validator("cb_headers")
    @classmethod
    def _are_headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not text.isascii():
                raise ValueError(f"the value of the header {name!r} must be ASCII")
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or name.lower() in RESERVED_HEADERS:
                raise ValueError(f"{name!r} cannot be a header of a callback")
        return value

    @field_serializer("cb_secret", when_used="json")
    def _in_clear(self, value: SecretStr | None) -> str | None:
        return value.get_secret_value() if value is not None else None


RESERVED_HEADERS = frozenset(
    {"connection", "content-length", "content-type", "host", "transfer-encoding", "upgrade"}
)


class BackendConfig(StrictModel):
    """One way to run jobs at a site."""

    type: str = "local"
    """`local`: processes of the host of the service; `slurm`: sbatch."""
    queue_name: str | None = None
    """Partition."""
    project_name: str | None = None
    """Account."""
    reservation_id: str | None = None
    """Reservation."""
    attributes: dict[str, str] = Field(default_factory=dict)
    """Names that begin with `-` are options of sbatch for every job. Others configure the
    backend: `slurm_conf` (path of the cluster's slurm.conf), `psik_python` (interpreter that
    has lclstream on the nodes), `allow_attributes` (options that jobs may set, by comma)."""


class ExtraInfo(StrictModel):
    """What stands in the `new` row of a history."""

    backend: BackendConfig = BackendConfig()


class Callback(BaseModel):
    """Body of a callback, in this order of keys."""

    model_config = ConfigDict(frozen=True)

    jobid: JobId
    jobndx: int
    state: JobState
    info: str = ""


class JobStepInfo(BaseModel):
    """One row of a job's history, as the REST service shows it."""

    model_config = ConfigDict(frozen=True)

    jobid: str
    name: str
    updated: float
    """When, in seconds since 1970."""
    jobndx: int
    state: JobState
    info: str


class FileStat(BaseModel):
    """One file or folder of a job's directory."""

    size: int
    """In bytes."""
    atime: int
    mtime: int
    """Last change, in seconds since 1970."""
    children: "bool | dict[str, FileStat]"
    """false: a file; true: a folder that is not listed here."""


class SystemStatus(BaseModel):
    """Whether a backend takes jobs."""

    name: str
    full_name: str | None = None
    description: str | None = None
    system_type: str | None = None
    notes: list[str] = Field(default_factory=list)
    status: Literal["active", "unavailable", "degraded", "other"] = "active"
    updated_at: str | None = None


class Config(StrictModel):
    """What psik reads from `psik.json`."""

    prefix: Path
    """Folder of all job folders."""
    backends: dict[str, BackendConfig] = Field(
        default_factory=lambda: {"default": BackendConfig()}, min_length=1
    )
    """Backends by name; a job without one uses `default`."""

    @field_validator("backends")
    @classmethod
    def _are_known(cls, value: dict[str, BackendConfig]) -> dict[str, BackendConfig]:
        for name, backend in value.items():
            if backend.type not in KNOWN_BACKENDS:
                allowed = ", ".join(KNOWN_BACKENDS)
                raise ValueError(f"backend {name!r} has type {backend.type!r}; allowed: {allowed}")
        return value


KNOWN_BACKENDS = ("local", "slurm")


class ServiceConfig(Config):
    """Configuration of `lclstream job serve`; the other commands accept it too."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    identity: Path | None = None
    """Identity folder of the service; `serve` needs it."""
    ready_file: Path | None = None
    """Gets `{"url": ...}` when the service listens."""
    admins: frozenset[CallerName] = frozenset()
    """Callers that may see and change every job, such as `uid:mona` or `cn:transfers`."""
    callback_hosts: frozenset[str] = frozenset()
    """Where callbacks may go: `host`, `host:port` (https), or `http://host:port`; `*.domain`
    stands for every host below a domain. None: jobs cannot have callbacks."""
    directories: tuple[Path, ...] = ()
    """Roots: a job's `directory` must lie below one of them."""
    poll_s: float = Field(default=5.0, gt=0, le=60)
    """How often the batch system is asked about all jobs, in seconds."""
    submit_timeout_s: float = Field(default=3600.0, gt=0)
    """How long a job waits for a batch system that does not answer before it fails."""
    callback_timeout_s: float = Field(default=86400.0, gt=0)
    """How long an undeliverable callback is tried again."""
    max_body_bytes: int = Field(default=4 * MIB, gt=0)
    """Largest request, without uploads."""
    max_upload_bytes: int = Field(default=64 * MIB, gt=0)
    """Largest upload, all files of a request together."""
    max_log_bytes: int = Field(default=MIB, gt=0)
    """Most that is shown of one log at once."""
