"""Damaged files: a typed error or none, no more memory than the file has, and an end."""

import contextlib
import logging
import os
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.xtc2_runs import (
    EPICS,
    EXPERIMENT,
    RUN,
    START,
    WAVE,
    field,
    parameters,
    stream_path,
    wave_values,
)

from lclstream.core.errors import (
    DecodeError,
    InvalidConfigError,
    LclstreamError,
    NotFoundError,
)
from lclstream.streamer.config import Parameters
from lclstream.streamer.sources.xtc2 import Xtc2EventSource
from lclstream.streamer.sources.xtc2_dgram import Dgram, Window
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_format import (
    FieldType,
    Key,
    Names,
    NamesTable,
    Service,
    XtcType,
    later,
)
from lclstream.streamer.sources.xtc2_index_writer import write_index
from lclstream.streamer.sources.xtc2_info import describe
from lclstream.streamer.sources.xtc2_writer import EPICS_KEY, Xtc2Writer

SOAK = bool(os.environ.get("LCLSTREAM_SOAK"))
INPUTS = 20_000 if SOAK else 120
"""Damaged inputs for each way of reading."""
MEMORY_BYTES = 8 << 20

pytestmark = pytest.mark.timeout(3600 if SOAK else 60)

PANELS = [
    Names(
        detector="epix",
        algorithm="raw",
        segment=segment,
        fields=(field("raw", FieldType.U2, 3), field("mode:Mode", FieldType.ENUMVAL)),
    )
    for segment in range(2)
]
READINGS = (
    ("gas", ""), ("CXI:NOTE", ""), ("motor", ""), ("epix", "raw.raw"), ("epix[1]", "raw.mode"),
    ("wave", "fex.label"), ("wave", "fex.trace"), ("wave", "fex.offset"),
    ("wave", "fex.mode.label"),
)  # fmt: skip
EXTREMES = (0, 1, 2, 3, 11, 12, 13, 24, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


# Of two streams, the second of which goes on in another file.
PLACES = ((0, 0), (1, 0), (1, 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Return the files of a run with everything that there is."""
    folder = tmp_path_factory.mktemp("whole")
    paths = paths_in(folder)
    for path, (stream, chunk) in zip(paths, PLACES, strict=True):
        detectors = [PANELS[1]] if stream else [WAVE, PANELS[0]]
        with Xtc2Writer(
            path,
            experiment=EXPERIMENT,
            run=RUN,
            start=START,
            detectors=detectors,
            epics={} if stream else EPICS,
            scan={} if stream else {"motor": FieldType.F8},
            continues=chunk > 0,
        ) as file:
            if chunk == 0:
                file.begin_run(later(START, 10), scan={} if stream else {"motor": 1.5})
            for index in range(3):
                if stream == 0 or (index == 2) == chunk:
                    write_event(file, stream, index, [each.key for each in detectors])
            if (stream, chunk) == (1, 0):
                file.announce_chunk(later(START, 280), 1, paths[2].name)
            else:
                file.end_run(later(START, 1000))
    return [path.read_bytes() for path in paths]


def paths_in(folder: Path) -> list[Path]:
    return [stream_path(folder, stream, chunk) for stream, chunk in PLACES]


def write_event(file: Xtc2Writer, stream: int, index: int, keys: list[Key]) -> None:
    values = {} if stream else {EPICS_KEY: {"gas": 1.0, "note": "x"}}
    file.transition(Service.SLOW_UPDATE, later(START, 100 * index + 90), values)
    contributions: dict[Key, dict[str, Any]] = {
        each.key: {"raw": [[[1, 2, 3], [4, 5, 6]]], "mode:Mode": 1} for each in PANELS
    }
    contributions[WAVE.key] = wave_values(index)
    file.event(later(START, 100 * index + 100), {key: contributions[key] for key in keys})


def structure(raw: bytes) -> list[int]:
    """Return where numbers are that say how long or of what kind something is."""
    places: list[int] = []
    names: NamesTable = {}
    at = 0
    while at < len(raw):
        dgram = Dgram(Window(raw, "whole"), at, names)
        places += range(at, at + 24, 4)
        if dgram.service is Service.CONFIGURE:
            names = dgram.described()
        for xtc in dgram.xtcs():
            places += range(xtc.start - 12, min(xtc.end, xtc.start + 60), 4)
            if xtc.kind == XtcType.NAMES:
                # Type and rank of the fields.
                kinds = range(xtc.start + 1036 + 516, xtc.end, 524)
                places += [*kinds, *(each + 4 for each in kinds)]
        at = dgram.end
    return places


def damaged(raw: bytes, places: list[int], chance: random.Random) -> bytes:
    """Return a file with up to four kinds of damage."""
    edited = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        anywhere = chance.random() < 0.3
        at = chance.randrange(len(raw)) if anywhere else chance.choice(places)
        damage(edited, min(at, len(edited) - 4), chance)
    return bytes(edited[: chance.randint(0, len(edited))] if chance.random() < 0.2 else edited)


def damage(edited: bytearray, at: int, chance: random.Random) -> None:
    number = edited[at : at + 4]
    length = chance.randint(1, 200)
    match chance.randrange(6):
        case 0:
            edited[at + chance.randrange(4)] ^= 1 << chance.randrange(8)
        case 1:
            edited[at : at + 4] = chance.choice(EXTREMES).to_bytes(4, "little")
        case 2:
            edited[at : at + 4] = chance.randbytes(4)
        case 3:
            # A little longer or shorter than it should be.
            other = int.from_bytes(number, "little") + chance.randint(-40, 40)
            edited[at : at + 4] = (other % 2**32).to_bytes(4, "little")
        case 4 if len(edited) > 1000:
            del edited[at : at + length]
        case _:
            edited[at:at] = edited[at : at + length]


def inputs(whole: list[bytes], seed: int) -> Iterator[list[bytes]]:
    chance = random.Random(seed)  # noqa: S311
    places = [structure(raw) for raw in whole]
    for _ in range(INPUTS):
        hit = chance.randrange(len(whole))
        yield [
            damaged(raw, places[number], chance) if number == hit or chance.random() < 0.2 else raw
            for number, raw in enumerate(whole)
        ]


def put(path: Path, raw: bytes) -> None:
    # Some file systems wait for the disk where a file is written anew.
    path.unlink(missing_ok=True)
    path.write_bytes(raw)


def read_all(config: Parameters, size: int) -> LclstreamError | None:
    """Read everything that can be read, and return what ends the reading early."""
    try:
        for rank in range(size):
            for event in Xtc2EventSource(config, rank, size):
                for name, reading in READINGS:
                    # A name may be damaged, so that it is not there.
                    with contextlib.suppress(InvalidConfigError):
                        event.read(name, reading)
    except (DecodeError, NotFoundError) as error:
        return error
    return None


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    # Records that are kept would look like memory that is lost.
    caplog.set_level(logging.CRITICAL, "lclstream")


@pytest.mark.parametrize("access", ["map", "read"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_damage_is_a_typed_error_or_none(
    tmp_path: Path, whole: list[bytes], access: str, on_error: str
) -> None:
    paths = paths_in(tmp_path)
    identifier = f"exp={EXPERIMENT},run={RUN},dir={tmp_path}"
    config = parameters(identifier, source={"access": access, "on_error": on_error})
    errors = 0
    tracemalloc.start()
    try:
        for raws in inputs(whole, seed=len(access) * 10 + len(on_error)):
            for path, raw in zip(paths, raws, strict=True):
                put(path, raw)
            error = read_all(config, 1)
            if error is not None:
                # A damaged announcement may ask for a file that is not there.
                assert on_error == "stop" or isinstance(error, NotFoundError), error
                assert str(tmp_path) in str(error) or "segments of " in str(error)
                errors += 1
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()
    # The damage is neither too small to matter nor so large that nothing is looked at.
    assert on_error == "skip" or 0.2 * INPUTS < errors < 0.9 * INPUTS


def test_damage_of_an_index_changes_nothing(tmp_path: Path, whole: list[bytes]) -> None:
    paths = paths_in(tmp_path)
    for path, raw in zip(paths, whole, strict=True):
        put(path, raw)
    indexes = [write_index(paths[:1]), write_index(paths[1:])]
    sound = [path.read_bytes() for path in indexes]
    config = parameters(f"exp={EXPERIMENT},run={RUN},dir={tmp_path}")
    expected = [later(START, 100 * index + 100) for index in range(3)]
    for raws in inputs(sound, seed=5):
        for path, raw in zip(indexes, raws, strict=True):
            put(path, raw)
        events = [each for rank in range(2) for each in Xtc2EventSource(config, rank, 2)]
        assert sorted(each.timestamp for each in events) == expected


def test_damage_does_not_end_a_listing(tmp_path: Path, whole: list[bytes]) -> None:
    path = tmp_path / "any.xtc2"
    for raws in inputs(whole, seed=6):
        put(path, raws[0])
        error = None
        try:
            list(describe(str(path)))
            for dgram in Xtc2File(path):
                for each in dgram.contributions():
                    each.values()
                    each.enumerations()
        except DecodeError as caught:
            error = caught
        assert error is None or str(path) in str(error)
