"""Files and constants of area detectors, made for tests with every gain and many bad pixels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.helpers.xtc2_runs import EXPERIMENT, RUN, START, field

from lclstream.streamer.sources.xtc2_format import FieldType, Key, Names, Service, later
from lclstream.streamer.sources.xtc2_writer import (
    Xtc2Writer,
    encode_dgram,
    encode_names,
    encode_shapes_data,
)

JUNGFRAU_PANEL, EPIX_PANEL, EPIX_CHIPS = (512, 1024), (352, 384), (4, 176, 192)
JUNGFRAU_RANGES, EPIX_RANGES = 3, 7

TWO_JUNGFRAUS = """
# parent  0 object       0     x0      y0  z0   rot-z rot-y rot-x   tilts
CAM       0 JUNGFRAU:V2  0      0   20625   0      0     0   180   0.05 0.1 -0.2
CAM       0 JUNGFRAU:V2  1      0  -20625   0      0     0   180   0 0 0
IP        0 CAM          0      0       0   100000 90    0     0   0 0 0
"""
FOUR_EPIX = """
CAM 0 EPIX10KA:V1 0  20248 -20908 -60  0 0 0  -0.26706 -0.26778  0.06324
CAM 0 EPIX10KA:V1 1 -20144 -20823  10  0 0 0  -0.00289 -0.00361  0.25845
CAM 0 EPIX10KA:V1 2  20150  20934 -19  0 0 0   0.25623 -0.06640  0.05466
CAM 0 EPIX10KA:V1 3 -20254  20797  68  0 0 0   0.08590 -0.07868 -0.08667
IP  0 CAM         0  0 0 -100000  90 0 0  0 0 0
"""


def jungfraus(count: int, detector: str = "jungfrau") -> list[Names]:
    """Return what the segments of a Jungfrau contribute."""
    return [
        Names(
            detector=detector,
            detector_type="jungfrau",
            serial=f"80000-{segment}",
            algorithm="raw",
            version=(0, 1, 0),
            segment=segment,
            fields=(field("raw", FieldType.U2, 3),),
        )
        for segment in range(count)
    ]


def epixes(count: int, detector: str = "epixquad", *, is_by_pixel: bool) -> list[Names]:
    """Return what the segments of an epix10ka contribute, configuration included."""
    kept = [field("cbitsConfig", FieldType.U1, 2)] if is_by_pixel else []
    chips = [field("asicPixelConfig", FieldType.U1, 3), field("trbit", FieldType.U1, 1)]
    common: dict[str, Any] = {"detector": detector, "detector_type": "epix10ka"}
    names = []
    for segment in range(count):
        own = {**common, "serial": f"{detector}-{segment}", "segment": segment}
        version = (3, 0, 1) if is_by_pixel else (2, 0, 1)
        raw = (field("raw", FieldType.U2, 2),)
        names.append(Names(**own, algorithm="raw", version=version, fields=raw))
        names.append(Names(**own, algorithm="config", version=(2, 0, 0), fields=(*kept, *chips)))
    return names


def epix_configuration(
    random: np.random.Generator, count: int, detector: str = "epixquad", *, is_by_pixel: bool
) -> dict[Key, dict[str, Any]]:
    """Return the configuration of each segment: every mode occurs, also impossible ones."""
    found: dict[Key, dict[str, Any]] = {}
    for segment in range(count):
        values: dict[str, Any] = {
            "asicPixelConfig": random.integers(0, 16, EPIX_CHIPS, np.uint8),
            "trbit": random.integers(0, 2, 4, np.uint8),
        }
        if is_by_pixel:
            values = {"cbitsConfig": random.integers(0, 32, EPIX_PANEL, np.uint8), **values}
        found[detector, segment, "config"] = values
    return found


def raw_panel(random: np.random.Generator, panel: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return pixels mostly in the first range of the gain, in places in any."""
    raw = random.integers(2000, 4000, panel, np.uint16)
    raw[::7, ::5] |= random.integers(0, 4, raw[::7, ::5].shape, np.uint16) << 14
    raw[100:140] |= np.uint16(0x4000)
    raw[200:240] |= np.uint16(0xC000)
    raw[300:310] |= np.uint16(0x8000)
    return raw


def constants(
    random: np.random.Generator, ranges: int, count: int, panel: tuple[int, int], geometry: str = ""
) -> dict[str, Any]:
    """Return the constants of a detector."""
    shape = (ranges, count, *panel)
    gain = random.normal(40, 4, shape).astype(np.float32)
    gain[:, :, ::50, ::50] = 0
    status = np.zeros(shape, np.uint64)
    for each in status:
        each[random.random(each.shape) < 0.002] = 1 << random.integers(0, 63)
    found = {
        "pedestals": random.normal(3000, 100, shape).astype(np.float32),
        "pixel_gain": gain,
        "pixel_rms": random.normal(3, 1, shape).astype(np.float32),
        "pixel_status": status,
        "geometry": geometry,
    }
    if ranges == JUNGFRAU_RANGES:
        found["pixel_offset"] = random.normal(0, 5, shape).astype(np.float32)
    return {name: value for name, value in found.items() if not isinstance(value, str) or value}


def write_frames(
    path: Path,
    detectors: Sequence[Names],
    events: Sequence[Mapping[Key, Mapping[str, Any]]],
    configuration: Mapping[Key, Mapping[str, Any]] | None = None,
    run: int = RUN,
    late: int = 0,
) -> Path:
    """Write a run of frames, one millisecond apart, and how the detector is configured.

    Args:
        path: the file to be.
        detectors: what is in it.
        events: the values of each detector.
        configuration: the values of what is said once.
        run: its number.
        late: seconds by which it begins later than others.
    """
    start = later(START, late * 1_000_000_000)
    file = Xtc2Writer(
        path, experiment=EXPERIMENT, run=run, start=start, detectors=detectors, continues=True
    )
    with file:
        parts = [part for names in file._names.values() for part in encode_names(names)]
        for key, values in (configuration or {}).items():
            parts += encode_shapes_data(file._names[key], values)
        file.write(encode_dgram(Service.CONFIGURE, start, parts))
        file.begin_run(later(start, 1000))
        for number, event in enumerate(events, 1):
            file.event(later(start, 1_000_000 * number), event)
        file.end_run(later(start, 1_000_000 * (len(events) + 1)))
    return path


def frames(
    random: np.random.Generator, names: Sequence[Names], count: int, panel: tuple[int, int]
) -> list[dict[Key, dict[str, Any]]]:
    """Return events with a frame of every segment."""
    raws = [each for each in names if each.algorithm == "raw"]
    ranks = {each.key: each.fields[0].rank for each in raws}
    return [
        {
            key: {"raw": raw_panel(random, panel).reshape((1, *panel) if rank == 3 else panel)}
            for key, rank in ranks.items()
        }
        for _ in range(count)
    ]
