"""Where the configuration lies, as psik looks for it."""

import os
from pathlib import Path

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import load_file
from lclstream.jobs.models import ServiceConfig

NAME = "psik.json"


def find(path: Path | None = None) -> Path:
    """Return the configuration file: the given one, `$PSIK_CONFIG`, or psik's own places.

    Raises:
        InvalidConfigError: there is none; names the places.
    """
    if path is not None:
        return path
    if "PSIK_CONFIG" in os.environ:
        return Path(os.environ["PSIK_CONFIG"])
    places = [Path("/etc", NAME)]
    if "VIRTUAL_ENV" in os.environ:
        places.insert(0, Path(os.environ["VIRTUAL_ENV"], "etc", NAME))
    for place in places:
        if place.is_file():
            return place
    tried = ", ".join(str(place) for place in places)
    raise InvalidConfigError(f"no configuration: give --config or PSIK_CONFIG; tried {tried}")


def load(path: Path | None = None) -> ServiceConfig:
    """Read the configuration; relative paths in it start at the file's folder."""
    place = find(path)
    read = load_file(ServiceConfig, place)
    start = place.resolve().parent
    changes: dict[str, object] = {
        "prefix": start / read.prefix,
        "directories": tuple(start / root for root in read.directories),
    }
    if read.identity is not None:
        changes["identity"] = start / read.identity
    if read.ready_file is not None:
        changes["ready_file"] = start / read.ready_file
    return read.model_copy(update=changes)
