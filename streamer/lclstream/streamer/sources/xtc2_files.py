"""Which files a `source_identifier` names, and how they belong together.

A run is recorded in streams s000, s001, ... side by side, each in chunks c000, c001, ... one
after the other: `<experiment>-r<run>-s<stream>-c<chunk>.xtc2`. Files with other names are one
stream each.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import near

_NAME = re.compile(
    r"(?P<experiment>.+)-r(?P<run>\d+)-s(?P<stream>\d+)-c(?P<chunk>\d+)\.xtc2(\.inprogress)?"
)
_KEYS = ("files", "exp", "run", "dir", "max_events")
DATA_FOLDER = "/sdf/data/lcls/ds"
"""Where experiments lie unless SIT_PSDM_DATA says otherwise, as for psana."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What is read together: the streams of one run, each with its chunks in order."""

    streams: tuple[tuple[Path, ...], ...]
    experiment: str = ""
    """From the files' names; what the files say inside goes first."""
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a `source_identifier` selects."""

    recordings: tuple[Recording, ...]
    max_events: int = 0
    """Over all ranks; 0 = all."""


def select(source_identifier: str) -> Selection:
    """Return the files that a `source_identifier` names.

    It is a list separated by commas: paths, with or without `files=` before each, or
    `exp=NAME,run=NUMBER` with `dir=FOLDER` where the files are not in the usual place. Either
    takes `max_events=N`.

    Raises:
        InvalidConfigError: it cannot be understood, or names no file that exists.
    """
    paths: list[Path] = []
    options: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in source_identifier.split(","))):
        key, equals, value = item.partition("=")
        if not equals or "/" in key:
            paths.append(Path(item))
        elif key == "files":
            paths.append(Path(value))
        elif key in _KEYS:
            options[key] = value
        else:
            hint = near(key, _KEYS) or f"; allowed: {', '.join(_KEYS)}"
            raise InvalidConfigError(f"source_identifier: {item!r} is not understood{hint}")
    max_events = _number("max_events", options.pop("max_events", "0"))
    if options and paths:
        raise InvalidConfigError("source_identifier: give either files or exp and run, not both")
    if options:
        return Selection(recordings=(_find(options),), max_events=max_events)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not paths:
        what = f"no such file: {', '.join(missing)}" if missing else "names no file"
        raise InvalidConfigError(f"source_identifier: {what}")
    return Selection(recordings=group(paths), max_events=max_events)


def group(paths: Sequence[Path]) -> tuple[Recording, ...]:
    """Return the recordings that files form, in the order in which each is first named.

    Raises:
        InvalidConfigError: a file is named twice, or a chunk is missing before another.
    """
    runs: dict[tuple[str, int], dict[object, dict[int, Path]]] = {}
    for path in paths:
        match = _NAME.fullmatch(path.name)
        run = (match["experiment"], int(match["run"])) if match else ("", 0)
        stream = int(match["stream"]) if match else path.absolute()
        chunk = int(match["chunk"]) if match else 0
        chunks = runs.setdefault(run, {}).setdefault(stream, {})
        if chunks.setdefault(chunk, path) is not path:
            raise InvalidConfigError(f"source_identifier: {path} and {chunks[chunk]} are the same")
    return tuple(
        Recording(
            streams=tuple(_in_order(chunks) for chunks in streams.values()),
            experiment=experiment,
            run=run,
        )
        for (experiment, run), streams in runs.items()
    )


def _in_order(chunks: dict[int, Path]) -> tuple[Path, ...]:
    """Return the chunks of one stream; only the first describes what is in the others."""
    missing = sorted(set(range(max(chunks))) - chunks.keys())
    if missing:
        path = chunks[max(chunks)]
        raise InvalidConfigError(f"source_identifier: chunk {missing[0]} before {path} is missing")
    return tuple(chunks[each] for each in sorted(chunks))


def _find(options: dict[str, str]) -> Recording:
    absent = [key for key in ("exp", "run") if not options.get(key)]
    if absent:
        raise InvalidConfigError(f"source_identifier: {' and '.join(absent)} must be given")
    experiment, run = options["exp"], _number("run", options["run"])
    if not re.fullmatch(r"[A-Za-z0-9_]+", experiment):
        raise InvalidConfigError(f"source_identifier: {experiment!r} is no name of an experiment")
    folder = Path(options["dir"]) if "dir" in options else _usual_folder(experiment)
    pattern = f"{experiment}-r{run:04d}-s*-c*.xtc2"
    found = list(folder.glob(pattern))
    # While it is written a file has a longer name; what is there of it is read.
    complete = {path.name for path in found}
    found += [each for each in folder.glob(pattern + ".inprogress") if each.stem not in complete]
    found = sorted(path for path in found if _NAME.fullmatch(path.name))
    if not found:
        raise InvalidConfigError(f"source_identifier: no {pattern} in {folder}")
    return group(found)[0]


def _usual_folder(experiment: str) -> Path:
    return Path(os.environ.get("SIT_PSDM_DATA", DATA_FOLDER)) / experiment[:3] / experiment / "xtc"


def _number(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise InvalidConfigError(f"source_identifier: {key} must be a whole number, got {value!r}")
    return int(value)
