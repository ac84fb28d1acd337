"""Which files a `source_identifier` names, and how they belong together.

A run is recorded in streams s000, s001, ... side by side, each in chunks c000, c001, ... one
after the other: `<experiment>-r<run>-s<stream>-c<chunk>.xtc2`, with `.inprogress` behind it
while it is written. Files with other names are one stream each.
"""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import near

_NAME = re.compile(
    r"(?P<experiment>.+)-r(?P<run>\d+)-s(?P<stream>\d+)-c(?P<chunk>\d+)\.xtc2(\.inprogress)?"
)
_RUNS = re.compile(r"\[?(\d+)(?:-(\d+))?\]?")
_KEYS = ("files", "exp", "run", "dir", "max_events", "live", "ffb")
SUFFIX = ".xtc2"
INDEX_SUFFIX = ".smd.xtc2"
UNFINISHED = ".inprogress"
MAX_RUNS = 10_000
DATA_FOLDER = "/sdf/data/lcls/ds"
"""Where experiments lie unless SIT_PSDM_DATA says otherwise, as for psana."""
FAST_FOLDER = "/sdf/data/lcls/drpsrcf/ffb"
"""Where the data acquisition puts them first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileName:
    """What the name of a file says."""

    experiment: str
    run: int
    stream: int
    chunk: int

    def __str__(self) -> str:
        return f"{self.experiment}-r{self.run:04d}-s{self.stream:03d}-c{self.chunk:03d}{SUFFIX}"

    @property
    def next_chunk(self) -> "FileName":
        """The name of the file in which the stream goes on."""
        return replace(self, chunk=self.chunk + 1)


def file_name(path: Path) -> FileName | None:
    """Return what a file's name says; None when it is none of the data acquisition's."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    experiment, run, stream, chunk = match.group("experiment", "run", "stream", "chunk")
    return FileName(experiment=experiment, run=int(run), stream=int(stream), chunk=int(chunk))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What is read together: the streams of one run, each with its chunks in order."""

    streams: tuple[tuple[Path, ...], ...]
    experiment: str = ""
    """From the files' names; what the files say inside goes first."""
    run: int = 0
    is_whole: bool = False
    """Whether this is all that there is of the run, so that a chunk more would be amiss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A run, by the folder where its files are, or will be."""

    folder: Path
    experiment: str
    run: int

    @property
    def pattern(self) -> str:
        """What the names of its files look like."""
        return f"{self.experiment}-r{self.run:04d}-s*-c*{SUFFIX}"

    def recording(self) -> Recording | None:
        """Return what is there now, None when there is nothing."""
        found = _finished_first(self.folder.glob(self.pattern + "*"))
        paths = sorted(path for path in found if file_name(path))
        return replace(group(paths)[0], is_whole=True) if paths else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a `source_identifier` selects."""

    recordings: tuple[Recording, ...] = ()
    searches: tuple[Search, ...] = ()
    """Runs whose files need not be there yet; only with `is_live`."""
    max_events: int = 0
    """Over all ranks; 0 = all."""
    is_live: bool = False
    """Whether files that are still being written are followed."""


def select(source_identifier: str, *, is_live: bool = False) -> Selection:
    """Return the files that a `source_identifier` names.

    It is a list separated by commas: files, folders or patterns such as `/data/*.xtc2`, with or
    without `files=` before each; or `exp=NAME,run=NUMBER` with `dir=FOLDER` where the files are
    not in the usual place, `run=5,7,10-12` for several runs. Either takes `max_events=N` and
    `live`.

    Args:
        source_identifier: the text.
        is_live: whether files are followed also when it does not say so.

    Raises:
        InvalidConfigError: it cannot be understood, or names no file that exists.
    """
    paths, options = _parts(source_identifier)
    max_events = _number("max_events", options.pop("max_events", "0"))
    is_live = _flag(options, "live") or is_live
    if options and paths:
        raise InvalidConfigError("source_identifier: give either files or exp and run, not both")
    if not options:
        recordings = group(_existing(paths))
        return Selection(recordings=recordings, max_events=max_events, is_live=is_live)
    searches = _searches(options, is_live=is_live)
    if is_live:
        return Selection(searches=searches, max_events=max_events, is_live=True)
    found = [(each, each.recording()) for each in searches]
    missing = [each for each, recording in found if recording is None]
    if missing:
        raise InvalidConfigError(
            f"source_identifier: no {missing[0].pattern} in {missing[0].folder}"
        )
    recordings = tuple(recording for _, recording in found if recording is not None)
    return Selection(recordings=recordings, max_events=max_events)


def group(paths: Sequence[Path]) -> tuple[Recording, ...]:
    """Return the recordings that files form, in the order in which each is first named.

    Raises:
        InvalidConfigError: a file is named twice, or a chunk is missing before another.
    """
    runs: dict[tuple[str, int], dict[object, dict[int, Path]]] = {}
    for path in paths:
        name = file_name(path)
        run = (name.experiment, name.run) if name else ("", 0)
        stream = name.stream if name else path.absolute()
        chunk = name.chunk if name else 0
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


def finished_or_not(path: Path) -> Path | None:
    """Return the file of a name, or that which will have it; None when neither is there."""
    unfinished = path.with_name(path.name + UNFINISHED)
    return next((each for each in (path, unfinished) if each.is_file()), None)


def _parts(source_identifier: str) -> tuple[list[str], dict[str, str]]:
    """Return the paths and the options that a text names."""
    paths: list[str] = []
    options: dict[str, str] = {}
    before = ""
    for item in filter(None, (part.strip() for part in source_identifier.split(","))):
        key, equals, value = item.partition("=")
        if before == "run" and _RUNS.fullmatch(item):
            options["run"] += f",{item}"
            continue
        if key == "files" and equals:
            paths.append(value)
        elif key in _KEYS and (equals or key in ("live", "ffb")):
            options[key] = value
        elif not equals or "/" in key:
            paths.append(item)
        else:
            hint = near(key, _KEYS) or f"; allowed: {', '.join(_KEYS)}"
            raise InvalidConfigError(f"source_identifier: {item!r} is not understood{hint}")
        before = key
    return paths, options


def _existing(names: Sequence[str]) -> list[Path]:
    """Return the files that paths, folders and patterns name."""
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        matches = _matches(name)
        found += matches
        if not matches:
            missing.append(name)
    if missing or not found:
        what = f"no such file: {', '.join(missing)}" if missing else "names no file"
        raise InvalidConfigError(f"source_identifier: {what}")
    for path in found:
        if path.name.removesuffix(UNFINISHED).endswith(INDEX_SUFFIX):
            raise InvalidConfigError(
                f"source_identifier: {path} only says where events are; name the file itself"
            )
    return found


def _matches(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        inside = (each for each in path.iterdir() if _is_data(each))
        return sorted(_finished_first(inside))
    one = finished_or_not(path)
    if one is not None:
        return [one]
    # That of pathlib knows no absolute patterns.
    found = map(Path, glob.glob(name))  # noqa: PTH207
    return sorted(_finished_first(each for each in found if _is_data(each)))


def _is_data(path: Path) -> bool:
    name = path.name.removesuffix(UNFINISHED)
    return name.endswith(SUFFIX) and not name.endswith(INDEX_SUFFIX) and path.is_file()


def _finished_first(paths: Iterable[Path]) -> list[Path]:
    """Leave out the unfinished files that are there under their final names, too."""
    every = set(paths)
    return [
        each for each in every if each.suffix != UNFINISHED or each.with_suffix("") not in every
    ]


def _in_order(chunks: dict[int, Path]) -> tuple[Path, ...]:
    """Return the chunks of one stream; only the first describes what is in the others."""
    missing = sorted(set(range(max(chunks))) - chunks.keys())
    if missing:
        path = chunks[max(chunks)]
        raise InvalidConfigError(f"source_identifier: chunk {missing[0]} before {path} is missing")
    return tuple(chunks[each] for each in sorted(chunks))


def _searches(options: dict[str, str], *, is_live: bool) -> tuple[Search, ...]:
    absent = [key for key in ("exp", "run") if not options.get(key)]
    if absent:
        raise InvalidConfigError(f"source_identifier: {' and '.join(absent)} must be given")
    experiment = options["exp"]
    if not re.fullmatch(r"[A-Za-z0-9_]+", experiment):
        raise InvalidConfigError(f"source_identifier: {experiment!r} is no name of an experiment")
    is_fast = _flag(options, "ffb")
    folder = Path(options["dir"]) if "dir" in options else _usual_folder(experiment, is_fast)
    runs = _runs(options["run"], experiment, folder, is_live=is_live)
    return tuple(Search(folder=folder, experiment=experiment, run=run) for run in runs)


def _runs(text: str, experiment: str, folder: Path, *, is_live: bool) -> list[int]:
    """Return the numbers of runs; of a range only those that exist, unless they are to come."""
    runs: list[int] = []
    for part in text.split(","):
        match = _RUNS.fullmatch(part.strip())
        if match is None:
            raise InvalidConfigError(
                f"source_identifier: run must be a whole number or a range, got {part!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + MAX_RUNS:
            raise InvalidConfigError(
                f"source_identifier: run must name 1 to {MAX_RUNS} runs, got {part!r}"
            )
        if first == last or is_live:
            runs += range(first, last + 1)
            continue
        names = map(file_name, folder.glob(f"{experiment}-r*-s*-c*{SUFFIX}*"))
        there = {name.run for name in names if name and name.experiment == experiment}
        runs += sorted(run for run in there if first <= run <= last)
    if not runs:
        raise InvalidConfigError(f"source_identifier: no run {text} of {experiment} in {folder}")
    return list(dict.fromkeys(runs))


def _usual_folder(experiment: str, is_fast: bool) -> Path:
    root = FAST_FOLDER if is_fast else os.environ.get("SIT_PSDM_DATA", DATA_FOLDER)
    return Path(root) / experiment[:3] / experiment / "xtc"


def _flag(options: dict[str, str], key: str) -> bool:
    """Take a word that may stand alone, or be true or false."""
    value = options.pop(key, "false")
    if value.lower() not in ("", "true", "false", "1", "0"):
        raise InvalidConfigError(f"source_identifier: {key} must be true or false, got {value!r}")
    return value.lower() in ("", "true", "1")


def _number(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise InvalidConfigError(f"source_identifier: {key} must be a whole number, got {value!r}")
    return int(value)
