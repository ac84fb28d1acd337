"""What a person writes to run the watcher."""

from pathlib import Path
from typing import Annotated, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import StrictModel, load_file, read_document
from lclstream.core.tls import check_private
from lclstream.elog.access import is_loopback
from lclstream.elog.models import FILE_CATALOG, RUNS, WORKFLOW_JOBS

OF_CONSUMERS = (
    "check.crcs",
    "fetch.",
    "group.",
    "heartbeat.",
    "isolation.level",
    "max.partition.fetch.",
    "max.poll.",
    "partition.assignment.",
    "queued.",
    "session.",
)
"""How the names of settings begin that a producer has no use for."""

M = TypeVar("M", bound=StrictModel)

Options = dict[str, str | int | float | bool]
"""Settings of librdkafka, by its own names."""

OWN_OPTIONS = (
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "group.id",
)
"""Settings of librdkafka that decide whether runs are lost; not to be passed through."""


def _safe_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected https://HOST[:PORT]")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("expected https: a password would travel in the clear")
    return url.rstrip("/")


def _pass_through(options: Options) -> Options:
    taken = sorted(set(options) & set(OWN_OPTIONS))
    if taken:
        raise ValueError(f"{', '.join(taken)}: decided by the watcher itself")
    return options


def _template(url: str) -> str:
    try:
        url.format(experiment="", run="", event="")
    except (KeyError, IndexError, ValueError):
        raise ValueError("expected only {experiment}, {run} and {event} in braces") from None
    return url


SafeUrl = Annotated[str, AfterValidator(_safe_url)]


class KafkaConfig(StrictModel):
    """The broker and what to read from it."""

    bootstrap: Annotated[str, StringConstraints(min_length=1)]
    """`host:port`, several separated by commas."""
    group: Annotated[str, StringConstraints(min_length=1)] = "lclstream"
    """Consumer group: watchers of one group share the work."""
    topics: tuple[str, ...] = Field(default=(RUNS, FILE_CATALOG, WORKFLOW_JOBS), min_length=1)
    """What to read."""
    options: Annotated[Options, AfterValidator(_pass_through)] = Field(default_factory=dict)
    """Further settings of librdkafka, such as `security.protocol` and `ssl.ca.location`."""
    secrets: Path | None = None
    """YAML file, readable by its owner only, with further settings such as `sasl.password`."""

    def producer_options(self) -> Options:
        """Return the settings of a producer: those of consumers would only make it complain.

        Raises:
            InvalidConfigError: the file of secrets is not usable.
        """
        options = self.client_options()
        return {name: value for name, value in options.items() if not name.startswith(OF_CONSUMERS)}

    def client_options(self) -> Options:
        """Return all settings that consumers and producers share.

        Raises:
            InvalidConfigError: the file of secrets is not usable.
        """
        secret: Options = {}
        if self.secrets is not None:
            if not self.secrets.is_file():
                raise InvalidConfigError(f"kafka.secrets: no file {self.secrets}")
            check_private(self.secrets)
            data = read_document(self.secrets)
            if not isinstance(data, dict) or set(data) & set(OWN_OPTIONS):
                raise InvalidConfigError(f"{self.secrets}: expected settings of librdkafka")
            secret = data
        return {"bootstrap.servers": self.bootstrap, **self.options, **secret}


class AirflowConfig(StrictModel):
    """Where DAG runs are made, and as whom."""

    url: SafeUrl
    """`https://HOST:PORT`; plain http only on this machine."""
    username: str | None = None
    """Account for `POST /auth/token`; with `password_file`."""
    password_file: Path | None = None
    """Holds the password, or a JSON object of user names and passwords as Airflow writes it."""
    token_file: Path | None = None
    """Holds a token that somebody else renews; in place of `username` and `password_file`."""
    ca: Path | None = None
    """Certificate authorities to trust; None for those of the system."""
    identity: Path | None = None
    """Folder with a client certificate, when a proxy in front of Airflow wants one."""
    timeout_s: float = Field(default=10.0, gt=0)
    """For one request; an idle Airflow answers in 50 ms."""
    unknown_dag_s: float = Field(default=60.0, ge=0)
    """How long to retry a DAG that Airflow does not know: a new file is parsed within 30 s."""
    retry_first_s: float = Field(default=0.2, gt=0)
    """Pause after the first failure; it doubles from there."""
    retry_most_s: float = Field(default=10.0, gt=0)
    """Longest pause between two attempts."""

    @model_validator(mode="after")
    def _one_login(self) -> Self:
        by_password = self.username is not None and self.password_file is not None
        half = (self.username is None) != (self.password_file is None)
        if half or by_password == (self.token_file is not None):
            raise ValueError("expected either username and password_file, or token_file")
        return self


class ElogConfig(StrictModel):
    """The logbook's own workflow definitions."""

    url: SafeUrl
    """Address in front of `/lgbk`."""
    identity: Path | None = None
    """Folder with our certificate, key and the trusted authorities."""
    ca: Path | None = None
    """Certificate authorities to trust when there is no identity; None for the system's."""
    username: str | None = None
    """Operator account for basic authentication; with `password_file`."""
    password_file: Path | None = None
    """Holds the password on its first line."""
    executables: tuple[str, ...] = ("lclstream-arp",)
    """A definition with one of these executables is ours; others are left to the ARP."""
    refresh_s: float = Field(default=30.0, ge=0)
    """How long the definitions of an experiment are remembered."""


class DeadLetterConfig(StrictModel):
    """Where messages go that cannot be handled; at least one place."""

    topic: str | None = None
    """A topic of the same broker."""
    file: Path | None = None
    """A file of JSON lines."""

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.topic is None and self.file is None:
            raise ValueError("expected topic or file, or both")
        return self


class HealthConfig(StrictModel):
    """An HTTPS address that shows the state, for monitoring."""

    identity: Path
    """Folder with the service's certificate, key and the trusted authorities."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=0, ge=0, le=65535)
    """0 for any free one."""


class WatchConfig(StrictModel):
    """`lclstream elog watch`: from run events to DAG runs. Relative paths start at the file."""

    kafka: KafkaConfig
    """Where run events come from."""
    airflow: AirflowConfig
    """Where DAG runs are made."""
    workflows: tuple[Path, ...] = ()
    """Files with workflow definitions, or folders of such files."""
    elog: ElogConfig | None = None
    """Use the logbook's definitions too."""
    dead_letters: DeadLetterConfig
    """Where messages go that cannot be handled."""
    max_age_s: float = Field(default=1800.0, gt=0)
    """Refuse what happened longer ago: the run that it would stream is over."""
    in_flight: int = Field(default=64, ge=1)
    """How many messages may wait for Airflow at once; then reading pauses."""
    nonrec_files: str | None = None
    """Regular expression of the paths that ALL_NONREC_FILES_TRANSFERRED counts."""
    counters_url: Annotated[str, AfterValidator(_template)] | None = None
    """Told to every DAG run; `{experiment}`, `{run}` and `{event}` are filled in."""
    health: HealthConfig | None = None
    """Show the state over HTTPS."""
    status_file: Path | None = None
    """Show the state in a JSON file, replaced every second."""
    ready_file: Path | None = None
    """Gets one JSON object when the watcher has joined its group."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not self.workflows and self.elog is None:
            raise ValueError("expected workflows or elog, else nothing can ever fire")
        if self.dead_letters.topic in self.kafka.topics:
            raise ValueError(
                "dead_letters.topic is among kafka.topics: each letter would make another"
            )
        return self


def load_config(path: Path) -> WatchConfig:
    """Read a configuration; its relative paths start at its own folder.

    Raises:
        InvalidConfigError: names every fault.
    """
    return resolved(load_file(WatchConfig, path), path.absolute().parent)


def resolved(config: M, folder: Path) -> M:
    """Return a configuration whose relative paths start at a folder, at every depth."""
    changed = {name: _resolved(value, folder) for name, value in config}
    return config.model_copy(update=changed)


def _resolved(value: object, folder: Path) -> object:
    match value:
        case StrictModel():
            return resolved(value, folder)
        case Path():
            return folder / value
        case tuple():
            return tuple(_resolved(each, folder) for each in value)
    return value
