"""What a person writes to run the stand-in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import StrictModel, parse, read_document
from lclstream.elog.config import Options, resolved


class MisbehaviourConfig(StrictModel):
    """What the real message path does now and then; all off by default."""

    duplicate: float = Field(default=0.0, ge=0, le=1)
    """Probability that a message is sent twice."""
    lose: float = Field(default=0.0, ge=0, le=1)
    """Probability that a message is never sent."""
    reorder: int = Field(default=1, ge=1)
    """So many messages at a time are sent in a random order; 1 keeps the order."""
    seed: int = 0
    """Of the dice."""


class StandinConfig(StrictModel):
    """`lclstream elog standin`: a logbook for demonstrations and tests."""

    kafka: str
    """`host:port` of the broker to publish to."""
    kafka_options: Options = Field(default_factory=dict)
    """Further settings of librdkafka."""
    identity: Path
    """Folder with certificate, key and the trusted authorities."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=0, ge=0, le=65535)
    """0 for any free one."""
    ready_file: Path | None = None
    """Gets `{"url": ...}` when calls are answered."""
    user_header: str | None = None
    """Request header with the user's name; None takes it from the certificate."""
    locations: tuple[str, ...] = ("S3DF", "NERSC", "SRCF_FFB")
    """Where files can be and jobs can run."""
    string_runs: bool = False
    """Run numbers are strings, as at CryoEM."""
    misbehaviour: MisbehaviourConfig = MisbehaviourConfig()
    """Duplicates, disorder and loss, for tests."""


def standin_config(path: Path | None, given: Mapping[str, Any]) -> StandinConfig:
    """Combine a file and what was given on the command line, which wins.

    Raises:
        InvalidConfigError: names every fault.
    """
    if path is None:
        return parse(StandinConfig, dict(given), "command line")
    data = read_document(path)
    if not isinstance(data, dict):
        raise InvalidConfigError(f"{path}: expected fields with values")
    folder = path.absolute().parent
    from_file = {name: value for name, value in data.items() if name not in given}
    config = resolved(parse(StandinConfig, {**from_file, **_plain(given)}, str(path)), folder)
    return config.model_copy(update=dict(given))


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
