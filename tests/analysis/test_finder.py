"""Peaks that are there are found, and no others."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclstream.analysis.finder import PeakFinder
from lclstream.analysis.settings import PeakSettings
from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import parse
from lclstream.streamer.config import SimulatedDetectorEventSourceConfig
from lclstream.streamer.sources.simulated import expected_event

CSPAD = Path(__file__).parents[3] / "shared/data/cxi78513_r0014_cspad.h5"

Frame = np.ndarray[Any, np.dtype[np.float32]]


def noise(*shape: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).normal(100.0, 3.0, shape).astype(np.float32)


def add_peak(frame: Frame, row: int, column: int, height: float = 60.0) -> None:
    frame[..., row, column] += height
    frame[..., row, column + 1] += height
    frame[..., row + 1, column] += height / 2
    frame[..., row + 1, column + 1] += height / 2


def test_one_peak_is_measured() -> None:
    frame = noise(64, 64)
    add_peak(frame, 20, 40)
    peaks = PeakFinder(PeakSettings()).find(frame)
    assert len(peaks) == 1
    assert peaks.panel[0] == 0
    assert peaks.row[0] == pytest.approx(20 + 1 / 3, abs=0.1)
    assert peaks.column[0] == pytest.approx(40.5, abs=0.1)
    assert peaks.intensity[0] == pytest.approx(180, rel=0.1)
    assert peaks.snr[0] == pytest.approx(20, rel=0.2)
    assert peaks.pixels[0] == 4


@pytest.mark.parametrize("shape", [(64, 64), (3, 64, 64), (1, 2, 50, 70), (40, 333)])
def test_noise_holds_no_peaks(shape: tuple[int, ...]) -> None:
    assert len(PeakFinder(PeakSettings()).find(noise(*shape))) == 0


def test_peaks_at_every_edge_and_corner() -> None:
    frame = noise(2, 50, 70)
    places = [(0, 0), (0, 68), (48, 0), (48, 68), (0, 33), (31, 31), (48, 40)]
    for row, column in places:
        add_peak(frame[1:], row, column)
    peaks = PeakFinder(PeakSettings()).find(frame)
    found = {(int(row), int(column)) for row, column in zip(peaks.row, peaks.column, strict=True)}
    assert found == set(places)
    assert set(peaks.panel) == {1}


def test_peaks_never_reach_across_panels() -> None:
    frame = noise(2, 64, 64)
    add_peak(frame, 20, 40)
    peaks = PeakFinder(PeakSettings()).find(frame)
    assert sorted(peaks.panel) == [0, 1]
    assert list(peaks.pixels) == [4, 4]


def test_brightest_first() -> None:
    frame = noise(64, 64)
    for number, height in enumerate((50.0, 200.0, 100.0)):
        add_peak(frame, 10 + 15 * number, 30, height)
    peaks = PeakFinder(PeakSettings()).find(frame)
    assert list(peaks.row.astype(int)) == [25, 40, 10]


def test_mask_and_not_finite_pixels_take_no_part() -> None:
    frame = noise(64, 64)
    add_peak(frame, 20, 40)
    add_peak(frame, 40, 20)
    frame[10:14, 10:14] = np.nan
    frame[50, 50:53] = np.inf
    frame[55:57, 3:5] = 1e30
    mask = np.ones(frame.shape, bool)
    mask[40:42, 20:22] = False
    mask[55:57, 3:5] = False
    peaks = PeakFinder(PeakSettings()).find(frame, mask)
    assert [(int(peaks.row[0]), int(peaks.column[0]))] == [(20, 40)]
    assert len(peaks) == 1


@pytest.mark.parametrize("value", [np.nan, 0.0, 7.0, -999.0, np.inf])
def test_frame_of_one_value(value: float) -> None:
    frame = np.full((2, 40, 40), value, np.float32)
    assert len(PeakFinder(PeakSettings()).find(frame)) == 0


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8", ">u2"])
def test_any_dtype(dtype: str) -> None:
    frame = noise(64, 64)
    add_peak(frame, 20, 40)
    assert len(PeakFinder(PeakSettings()).find(frame.astype(dtype))) == 1


def test_rare_single_photons_are_no_peaks() -> None:
    frame = np.zeros((2, 128, 128), np.float32)
    generator = np.random.default_rng(1)
    frame[generator.random(frame.shape) < 0.001] = 1.0
    assert len(PeakFinder(PeakSettings()).find(frame)) <= 1


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, 1),
        ({"min_pixels": 5}, 0),
        ({"max_pixels": 3}, 0),
        ({"threshold": 40.0}, 1),
        ({"threshold": 100.0}, 0),
        ({"snr": 40.0}, 0),
    ],
)
def test_limits(limits: dict[str, Any], count: int) -> None:
    frame = noise(64, 64)
    add_peak(frame, 20, 40)
    assert len(PeakFinder(parse(PeakSettings, limits)).find(frame)) == count


def test_contradicting_limits() -> None:
    with pytest.raises(InvalidConfigError, match="min_pixels must be <= max_pixels"):
        parse(PeakSettings, {"min_pixels": 9, "max_pixels": 8})


@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    tile=st.integers(8, 80),
    seed=st.integers(0),
)
def test_any_shape_gives_peaks_inside(rows: int, columns: int, tile: int, seed: int) -> None:
    frame = np.random.default_rng(seed).gamma(0.3, 5.0, (2, rows, columns))
    peaks = PeakFinder(PeakSettings(tile=tile, min_pixels=1)).find(frame)
    assert ((peaks.row >= 0) & (peaks.row <= rows - 1)).all()
    assert ((peaks.column >= 0) & (peaks.column <= columns - 1)).all()
    assert (peaks.intensity > 0).all()
    assert (peaks.pixels >= 1).all()


def test_simulated_crystals() -> None:
    config = SimulatedDetectorEventSourceConfig(events=30, shape=(256, 256))
    finder = PeakFinder(PeakSettings())
    distances: list[float] = []
    for index in range(30):
        event = expected_event(config, index)
        frame, mask = event.read("jungfrau", "raw.calib"), event.read("jungfrau", "raw.mask")
        peaks = finder.find(np.asarray(frame), np.asarray(mask) != 0)
        truth = np.asarray(event.read("truth", "positions"))
        truth = truth[truth[:, 0] >= 0]
        assert (len(peaks) >= 10) == bool(event.read("truth", "hit"))
        for panel, row, column in zip(peaks.panel, peaks.row, peaks.column, strict=True):
            near = truth[truth[:, 0] == panel]
            distances.append(float(np.hypot(near[:, 1] - row, near[:, 2] - column).min()))
    assert len(distances) > 200
    # All that was found is there.
    assert np.mean(np.array(distances) < 1.0) > 0.98


@pytest.mark.skipif(not CSPAD.is_file(), reason="no CSPAD frames on this machine")
def test_thermolysin_on_a_cspad() -> None:
    # CrystFEL's peakfinder8 finds 179 and 153 peaks with these limits and the panels' geometry.
    settings = PeakSettings(snr=6, threshold=150, min_pixels=2, max_pixels=30)
    finder = PeakFinder(settings)
    with h5py.File(CSPAD) as file:
        frames = file["entry/data/data"][...]
    counts = []
    for frame in frames:
        asics = frame.reshape(32, 185, 2, 194).swapaxes(1, 2)
        counts.append(len(finder.find(asics)))
    assert counts[0] == pytest.approx(179, rel=0.15)
    assert counts[1] == pytest.approx(153, rel=0.30)
