"""Calibrated readings of XTC2 files through the event source, as a configuration asks for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.area_detectors import (
    EPIX_PANEL,
    EPIX_RANGES,
    JUNGFRAU_PANEL,
    JUNGFRAU_RANGES,
    TWO_JUNGFRAUS,
    constants,
    epix_configuration,
    epixes,
    frames,
    jungfraus,
    write_frames,
)
from tests.helpers.calibration_service import calibration_service, constants_at
from tests.helpers.psana_environment import FIXTURE
from tests.helpers.xtc2_runs import EXPERIMENT, stream_path

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import open_event_source


def parameters(path: Path | str, found: Mapping[str, Any] | None, **fields: Any) -> Parameters:
    """Return a configuration; `fields` are data sources -> (detector, field)."""
    sources = {
        name: {"type": "Psana2DetectorInterface", "psana_name": of, "psana_fields": field}
        for name, (of, field) in fields.items()
    }
    event_source = {"type": "Xtc2EventSource"} | ({"calibration": found} if found else {})
    return parse_parameters(
        {
            "source_identifier": str(path),
            "event_source": event_source,
            "data_sources": sources,
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
            "data_serializer": {"type": "HDF5BinarySerializer"},
        }
    )


def values(config: Parameters) -> list[dict[str, Any]]:
    """Return the values of every event, copied."""
    extractor = Extractor(config, list(config.data_sources))
    found = []
    for event in open_event_source(config, 0, 1):
        extracted: Any = extractor.extract(event)
        found.append({name: None if v is None else np.array(v) for name, v in extracted.items()})
    return found


def two_jungfraus(folder: Path, events: int = 2, **changes: Any) -> tuple[Path, dict[str, Any]]:
    random = np.random.default_rng(4)
    names = jungfraus(2)
    made = frames(random, names, events, JUNGFRAU_PANEL)
    for number, key in changes.get("without", ()):
        del made[number][key]
    path = write_frames(folder / "two.xtc2", names, made, run=changes.get("run", 5))
    return path, constants(random, JUNGFRAU_RANGES, 2, JUNGFRAU_PANEL, TWO_JUNGFRAUS)


def test_frames_and_images_as_a_configuration_asks_for_them(tmp_path: Path) -> None:
    path, found = two_jungfraus(tmp_path, without=[(1, ("jungfrau", 1, "raw"))])
    np.savez(tmp_path / "jungfrau.npz", **found)
    fields = {
        "raw": ("jungfrau", "raw.raw"), "calib": ("jungfrau", "raw.calib"),
        "image": ("jungfrau", "raw.image"),
    }  # fmt: skip
    first, second = values(parameters(path, {"constants": str(tmp_path)}, **fields))
    assert (first["calib"].shape, first["calib"].dtype) == ((2, *JUNGFRAU_PANEL), np.float32)
    assert first["image"].shape == (1064, 1030)
    raw = first["raw"]
    good = (raw >> 14 == 0) & (found["pixel_status"] == 0).all(axis=0)
    gain = found["pixel_gain"][0]
    wanted = (raw - found["pedestals"][0] - found["pixel_offset"][0]) / np.where(gain, gain, 1)
    wanted *= good & (gain != 0)
    assert np.allclose(first["calib"][good], wanted[good], rtol=1e-5, atol=1e-3)
    # Where a segment is missing, so is everything.
    assert [second[name] is None for name in fields] == [True] * 3


def subtracted(event: Mapping[str, Any]) -> list[float]:
    """Return what was subtracted from the pixels in the first range of the gain."""
    first = event["raw"] < 0x4000
    return np.unique(event["raw"][first].astype(np.float32) - event["calib"][first]).tolist()  # type: ignore[no-any-return]


def test_constants_of_a_service_are_of_the_run(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    names = jungfraus(1)
    made = frames(random, names, 1, JUNGFRAU_PANEL)
    paths = [write_frames(stream_path(tmp_path, run=run), names, made, run=run) for run in (3, 4)]
    pedestals = np.zeros((3, 1, *JUNGFRAU_PANEL), np.float32)
    with calibration_service() as service:
        constants_at(service, "jungfrau_80000-0", "jungfrau_000001", {"pedestals": pedestals})
        service.add(EXPERIMENT, "jungfrau_000001", "pedestals", pedestals + 100, 4)
        settings = {"constants": service.url, "cache": str(tmp_path / "cache")}
        identifier = ",".join(map(str, paths))
        field = {"calib": ("jungfrau", "raw.calib"), "raw": ("jungfrau", "raw.raw")}
        means = [
            [subtracted(each) for each in values(parameters(identifier, settings | more, **field))]
            for more in ({}, {"run": 3})
        ]
    assert means == [[[0.0], [100.0]], [[0.0], [0.0]]]
    assert len([each for each in service.asked if "gridfs" in each]) == 2


def test_another_detector_of_the_same_name_has_other_constants(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    paths = []
    for count in (2, 1):
        names = jungfraus(count)
        # Both are run 5, and neither file is called after it.
        path = tmp_path / f"{'ab'[count - 1]}.xtc2"
        paths.append(
            write_frames(path, names, frames(random, names, 1, JUNGFRAU_PANEL), late=2 - count)
        )
    np.savez(tmp_path / "c.npz", **constants(random, JUNGFRAU_RANGES, 2, JUNGFRAU_PANEL))
    fields = {"calib": ("jungfrau", "raw.calib")}
    settings = {"constants": str(tmp_path / "c.npz")}
    shapes = []
    for path in paths:
        (found,) = values(parameters(path, settings, **fields))
        shapes.append(found["calib"].shape)
    joined = tmp_path / "joined.xtc2"
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    both = [each["calib"].shape for each in values(parameters(joined, settings, **fields))]
    assert both == shapes == [(2, *JUNGFRAU_PANEL), (1, *JUNGFRAU_PANEL)]


def test_a_single_panel_has_the_shape_of_the_raw_pixels(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    names = epixes(1, is_by_pixel=False)
    made = frames(random, names, 1, EPIX_PANEL)
    configuration = epix_configuration(random, 1, is_by_pixel=False)
    path = write_frames(tmp_path / "one.xtc2", names, made, configuration)
    np.savez(tmp_path / "c.npz", **constants(random, EPIX_RANGES, 1, EPIX_PANEL))
    fields = {"raw": ("epixquad", "raw.raw"), "calib": ("epixquad", "raw.calib")}
    (found,) = values(parameters(path, {"constants": str(tmp_path / "c.npz")}, **fields))
    assert found["calib"].shape == found["raw"].shape == EPIX_PANEL


def test_an_epix_without_configuration_gives_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    names = epixes(1, is_by_pixel=True)
    made = frames(random, names, 1, EPIX_PANEL)
    path = write_frames(tmp_path / "one.xtc2", names, made)
    np.savez(tmp_path / "c.npz", **constants(random, EPIX_RANGES, 1, EPIX_PANEL))
    fields = {"calib": ("epixquad", "raw.calib")}
    (found,) = values(parameters(path, {"constants": str(tmp_path / "c.npz")}, **fields))
    assert found["calib"] is None


def test_what_is_missing_is_said_before_anything_is_read(tmp_path: Path) -> None:
    path, found = two_jungfraus(tmp_path, 1)

    def refused(message: str, constants: str | None, field: str = "raw.calib") -> None:
        settings = {"constants": constants} if constants else None
        with pytest.raises(InvalidConfigError, match=message):
            open_event_source(parameters(path, settings, x=("jungfrau", field)), 0, 1)

    refused(r"^jungfrau.raw.calib is not in the files; .* event_source.calibration", None)
    refused(r"^'jungfrau' has no field 'raw.calibb'", None, "raw.calibb")
    refused(r"there is no /nowhere", "/nowhere")
    npz = tmp_path / "c.npz"
    np.savez(npz, pixel_gain=found["pixel_gain"])
    refused(r"c.npz: no constants 'pedestals'; there are: pixel_gain$", str(npz))
    np.savez(npz, pedestals=found["pedestals"])
    refused(r"an image needs constants 'geometry'", str(npz), "raw.image")
    np.savez(npz, pedestals=found["pedestals"], geometry="nonsense")
    refused(r"geometry: line 1: expected 13 columns", str(npz), "raw.image")


@pytest.mark.skipif(not FIXTURE.exists(), reason="real Jungfrau data are not here")
def test_real_frames(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    found = constants(random, JUNGFRAU_RANGES, 1, JUNGFRAU_PANEL)
    del found["pixel_status"]
    np.savez(tmp_path / "c.npz", **found)
    fields = {"raw": ("jungfrau", "raw.raw"), "calib": ("jungfrau", "raw.calib"),
              "image": ("jungfrau", "raw.image")}  # fmt: skip
    events = values(parameters(FIXTURE, {"constants": str(tmp_path / "c.npz")}, **fields))
    assert len(events) == 2
    for each in events:
        raw, image = each["raw"], each["image"]
        plane = np.array([0, 1, 0, 2])[raw >> 14]
        chosen = {
            name: np.take_along_axis(found[name], plane[None], axis=0)[0]
            for name in ("pedestals", "pixel_offset", "pixel_gain")
        }
        total = (chosen["pedestals"] + chosen["pixel_offset"]).astype(np.float32)
        gain = chosen["pixel_gain"]
        factor = np.where(gain == 0, 0, 1 / np.where(gain == 0, 1, gain)).astype(np.float32)
        assert np.array_equal(each["calib"], ((raw & 0x3FFF).astype(np.float32) - total) * factor)
        assert image.shape == (514, 1030)
        assert np.isin(image[:256, :256], each["calib"]).mean() > 0.99
