"""The simulated detector: an event depends on nothing but the settings and its number."""

from typing import Any

import numpy as np
import pytest

from lclstream.core.errors import InvalidConfigError
from lclstream.core.ledger import digest64
from lclstream.streamer.config import SimulatedDetectorEventSourceConfig, parse_parameters
from lclstream.streamer.sources.simulated import (
    FIRST_SECOND,
    WAVELENGTH_PV,
    SimulatedDetectorEventSource,
    expected_event,
)

Config = SimulatedDetectorEventSourceConfig


def pixels(config: Config, index: int) -> Any:
    return expected_event(config, index).read("jungfrau", "raw.raw")


def test_ranks_share_the_events_and_agree_with_the_receiver(document: dict[str, Any]) -> None:
    document["event_source"] |= {"events": 11, "missing_frames": 0.3}
    parameters = parse_parameters(document)
    assert isinstance(parameters.event_source, Config)
    events = {
        event.index: event
        for rank in range(3)
        for event in SimulatedDetectorEventSource(parameters, rank, 3)
    }
    assert sorted(events) == list(range(11))
    missing = 0
    # In another order than they were made.
    for index in reversed(range(11)):
        wanted = expected_event(parameters.event_source, index, "tst000124", 3)
        assert (events[index].timestamp, events[index].run) == (wanted.timestamp, 3)
        assert events[index].experiment == "tst000124"
        got, frame = (each.read("jungfrau", "raw.raw") for each in (events[index], wanted))
        missing += frame is None
        assert (got is None) == (frame is None)
        if frame is not None:
            assert np.array_equal(np.asarray(got), np.asarray(frame))
        assert events[index].read(WAVELENGTH_PV) == wanted.read(WAVELENGTH_PV)
    assert 0 < missing < 11


def test_pixels_are_the_same_on_every_machine() -> None:
    # Receivers elsewhere, and of later versions, compare with these.
    config = Config(seed=5, panels=2, shape=(64, 96), hit_rate=1)
    frame = pixels(config, 3)
    assert (frame.dtype, frame.shape) == (np.uint16, (2, 64, 96))
    assert f"{digest64(frame.tobytes()):016x}" == "7962732120b52ebe"


def test_seeds_and_events_differ() -> None:
    config = Config(panels=1, shape=(32, 32))
    frames = [
        pixels(config, 0),
        pixels(config, 1),
        pixels(config.model_copy(update={"seed": 1}), 0),
    ]
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])


def test_peaks_are_where_the_truth_says() -> None:
    config = Config(panels=2, shape=(256, 256), hit_rate=1, bad_pixels=0, peaks=20)
    event = expected_event(config, 1)
    photons = np.asarray(event.read("jungfrau", "raw.calib"))
    count = int(np.asarray(event.read("truth", "peak_count")))
    positions = np.asarray(event.read("truth", "positions"))
    assert 5 < count <= 20
    assert positions.shape == (20, 3)
    assert (positions[count:] == -1).all()
    brightest = [
        photons[panel, row - 1 : row + 2, column - 1 : column + 2].max()
        for panel, row, column in positions[:count].astype(int)
    ]
    # A few are weak, as in nature.
    assert sum(value > 5 * photons.std() for value in brightest) > 0.7 * count


def test_blank_events_have_no_peaks() -> None:
    event = expected_event(Config(hit_rate=0, panels=1, shape=(16, 16)), 4)
    assert event.read("truth", "hit") == 0
    assert event.read("truth", "peak_count") == 0


def test_bad_pixels_stay_in_place_and_are_masked() -> None:
    config = Config(panels=1, shape=(64, 64), bad_pixels=0.05)
    events = [expected_event(config, index) for index in (0, 1)]
    mask = np.asarray(events[0].read("jungfrau", "raw.mask")) == 0
    assert 100 < mask.sum() <= 205
    for event in events:
        raw = np.asarray(event.read("jungfrau", "raw.raw"))
        assert set(np.unique(raw[mask])) == {0, 60_000}
        assert (np.asarray(event.read("jungfrau", "raw.calib"))[mask] == 0).all()
        assert raw[~mask].min() > 500


def test_image_holds_every_panel() -> None:
    config = Config(panels=3, shape=(16, 24))
    event = expected_event(config, 0)
    stack = np.asarray(event.read("jungfrau", "raw.calib"))
    image = np.asarray(event.read("jungfrau", "raw.image"))
    assert image.shape == (2 * 16 + 8, 2 * 24 + 8)
    assert np.array_equal(image[:16, :24], stack[0])
    assert np.array_equal(image[:16, 32:], stack[1])
    assert np.array_equal(image[24:, :24], stack[2])


def test_scalars_go_missing_one_by_one() -> None:
    config = Config(panels=1, shape=(8, 8), missing_scalars=0.3)
    events = [expected_event(config, index) for index in range(200)]
    wavelengths = [event.read(WAVELENGTH_PV) for event in events]
    energies = [event.read("gmd", "raw.milliJoulesPerPulse") for event in events]
    assert 30 < sum(value is None for value in wavelengths) < 90
    assert [value is None for value in wavelengths] != [value is None for value in energies]
    assert all(value is None or abs(value - 1.3) < 0.002 for value in wavelengths)  # type: ignore[operator]


def test_time_stamps_are_exact_and_rise() -> None:
    config = Config(panels=1, shape=(8, 8))
    stamps = [expected_event(config, index).timestamp for index in (0, 1, 119, 120, 121)]
    assert stamps[0] == FIRST_SECOND << 32
    assert stamps[1] - stamps[0] == 8_333_333
    assert stamps == sorted(stamps)
    assert all(stamp & 0xFFFFFFFF < 1_000_000_000 for stamp in stamps)


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        (
            "jungfrua",
            "raw.raw",
            r"no detector or variable 'jungfrua' \(did you mean 'jungfrau'\?\)",
        ),
        (
            "jungfrau",
            "raw.rav",
            r"^'jungfrau' has no field 'raw.rav' \(did you mean 'raw.raw'\?\)$",
        ),
        ("zzz", "", r"'zzz'; there are: SIOC:SYS0:ML00:AO192, SIOC:SYS0:ML00:AO627, ebeamh, gmd"),
    ],
)
def test_what_does_not_exist_is_no_missing_reading(name: str, field: str, message: str) -> None:
    event = expected_event(Config(panels=1, shape=(8, 8), missing_frames=1), 0)
    assert event.read("jungfrau", "raw.raw") is None
    with pytest.raises(InvalidConfigError, match=message):
        event.read(name, field)
