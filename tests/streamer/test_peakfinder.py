"""The peak finder beside one written plainly, on simulated crystals, and on a real detector."""

import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.stepping import (
    applied,
    array,
    batches,
    event,
    parameters,
    ragged,
    random,
    step_of,
)

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import SimulatedDetectorEventSourceConfig
from lclstream.streamer.sources import diffraction
from lclstream.streamer.sources.simulated import SimulatedReadings, expected_event
from lclstream.streamer.steps import Step
from lclstream.streamer.values import Values

DATA = Path(__file__).parents[3] / "shared" / "data"
CSPAD = DATA / "cxi78513_r0014_cspad.h5"
GEOMETRY = DATA / "cxi78513_cspad.geom"

Frame = np.ndarray[Any, Any]
COLUMNS = ("fs", "ss", "panel", "intensity", "snr", "maximum", "pixels")


def finder(**options: Any) -> Step:
    return step_of("PeakFinder8", **{"input": "x", **options})


def peaks_of(frame: Frame, good: Frame | None = None, **options: Any) -> dict[str, Frame]:
    """Return the columns of the list of peaks of one frame."""
    if good is not None:
        options["mask"] = {"value": "m"}
    after = applied(finder(**options), {"x": frame, "m": good})
    found = {name: ragged(after[f"peaks_{name}"]) for name in COLUMNS}
    assert {len(column) for column in found.values()} == {int(array(after["peaks_count"]))}
    return found


def noise(*shape: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).normal(100.0, 3.0, shape).astype(np.float32)


def add_peak(frame: Frame, row: int, column: int, height: float = 60.0) -> None:
    frame[..., row, column] += height
    frame[..., row, column + 1] += height
    frame[..., row + 1, column] += height / 2
    frame[..., row + 1, column + 1] += height / 2


# Beside a plain program


def plain_peaks(
    frame: Frame, good: Frame, center: tuple[float, float], **o: Any
) -> list[list[Any]]:
    """Find the peaks of one panel with numpy and lists, from the description."""
    rows, columns = frame.shape
    pixels = frame.astype(np.float64)
    radius = np.hypot(np.arange(rows)[:, None] - center[0], np.arange(columns) - center[1])
    usable = good & np.isfinite(pixels) & (radius >= o["min_radius"]) & (radius <= o["max_radius"])
    ring = np.rint(radius).astype(int)
    high = np.full(ring.max() + 1, np.inf)
    low = -high
    for _ in range(5):
        counted = usable & (pixels >= low[ring]) & (pixels <= high[ring])
        weights = [np.ones(counted.sum()), pixels[counted], pixels[counted] ** 2]
        number, total, square = (
            np.bincount(ring[counted], weight, len(high)) for weight in weights
        )
        mean = total / np.maximum(number, 1)
        sigma = np.sqrt(np.maximum(square / np.maximum(number, 1) - mean**2, 0))
        high = np.where(number > 0, np.maximum(mean + o["min_snr"] * sigma, o["threshold"]), np.inf)
        low = np.where(number > 0, mean - o["min_snr"] * sigma, -np.inf)
    strong = usable & (pixels > high[ring])
    taken = np.zeros(frame.shape, bool)
    inner = itertools.product(range(1, rows - 1), range(1, columns - 1))
    groups = [
        _group(strong, taken, *place) for place in inner if strong[place] and not taken[place]
    ]
    found = []
    for group in groups:
        place = tuple(np.array(group).T)
        above = pixels[place] - mean[ring[place]]
        if not (o["min_pixels"] <= len(group) <= o["max_pixels"] and above.sum() > 0):
            continue
        middle = [int(np.rint((above * axis).sum() / above.sum())) for axis in place]
        reach = 2 * o["local_background_radius"]
        near = np.hypot(*np.ogrid[-middle[0] : rows - middle[0], -middle[1] : columns - middle[1]])
        around = pixels[(near <= reach) & ~taken & usable & (pixels <= high[ring])]
        offset = around.mean() if around.size else mean[ring[tuple(middle)]]
        spread = around.std() or sigma[ring[group[0]]]
        height = pixels[place] - offset
        intensity = height.sum()
        if intensity / spread < o["min_snr"] or height.max() < (
            around.max(initial=offset) - offset
        ):
            continue
        row, column = ((height * axis).sum() / intensity for axis in place)
        found.append([column, row, 0, intensity, intensity / spread, height.max(), len(group)])
    return found


def _group(strong: Frame, taken: Frame, row: int, column: int) -> list[tuple[int, int]]:
    group = [(row, column)]
    taken[row, column] = True
    for r, c in group:
        for near in ((r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            inside = 0 <= near[0] < strong.shape[0] and 0 <= near[1] < strong.shape[1]
            if inside and strong[near] and not taken[near]:
                taken[near] = True
                group.append(near)
    return group


@given(seed=st.integers(0, 1 << 32), dtype=st.sampled_from(["f4", "f8", "u2", "i4"]))
@settings(deadline=None, max_examples=15)
def test_peaks_are_those_of_a_plain_program(seed: int, dtype: str) -> None:
    generator = np.random.default_rng(seed)
    rows, columns = generator.integers(8, 70, 2)
    frame = generator.gamma(2.0, 20.0, (rows, columns))
    for _ in range(12):
        row, column = generator.integers(0, rows - 1), generator.integers(0, columns - 1)
        add_peak(frame, row, column, generator.uniform(100, 3000))
    frame = frame.astype(dtype)
    if frame.dtype.kind == "f":
        frame[0, 0] = np.finfo(np.float32).max
        frame[generator.random(frame.shape) < 0.01] = np.nan
        frame[generator.random(frame.shape) < 0.01] = np.inf
    good = generator.random(frame.shape) > 0.03
    center = tuple(generator.uniform(-10, 80, 2))
    options: dict[str, Any] = {
        "threshold": float(generator.choice([0.0, 120.0])),
        "min_snr": float(generator.uniform(3, 6)),
        "min_pixels": int(generator.integers(1, 3)),
        "max_pixels": int(generator.integers(4, 50)),
        "local_background_radius": int(generator.integers(1, 5)),
        "min_radius": float(generator.choice([0.0, 9.5])),
        "max_radius": float(generator.choice([40.0, 1000.0])),
    }
    found = peaks_of(frame, good, geometry={"center": center}, **options)
    wanted = plain_peaks(frame, good, center, **options)
    assert len(found["fs"]) == len(wanted)
    for number, row in enumerate(wanted):
        np.testing.assert_allclose([found[name][number] for name in COLUMNS], row, rtol=1e-4)


# By hand


def test_one_peak_is_measured() -> None:
    frame = noise(64, 64)
    add_peak(frame, 20, 40)
    found = peaks_of(frame, geometry={"center": [32, 32]})
    assert {name: column.dtype.name for name, column in found.items()} == {
        "fs": "float32", "ss": "float32", "panel": "int32", "intensity": "float32",
        "snr": "float32", "maximum": "float32", "pixels": "int32",
    }  # fmt: skip
    (fs,), (ss,), (panel,), (intensity,), (snr,), (maximum,), (pixels,) = found.values()
    assert (panel, pixels) == (0, 4)
    assert (fs, ss) == (pytest.approx(40.5, abs=0.1), pytest.approx(20 + 1 / 3, abs=0.1))
    assert intensity == pytest.approx(180, rel=0.1)
    assert snr == pytest.approx(180 / 3, rel=0.25)
    assert maximum == pytest.approx(60, rel=0.15)


def test_noise_and_flat_frames_have_no_peaks() -> None:
    for frame in (noise(128, 128), np.zeros((64, 64)), np.full((64, 64), np.nan)):
        assert not len(peaks_of(frame, geometry={"center": [32, 32]})["fs"])


def test_absurd_values_spoil_their_ring_only() -> None:
    frame = noise(128, 128).astype(np.float64)
    add_peak(frame, 90, 90)
    frame[30, 30], frame[30, 40] = 1e300, -1e300
    assert np.floor(peaks_of(frame, geometry={"center": [0, 0]})["fs"]).tolist() == [90]


def test_a_peak_on_nothing_stands_out_without_bound() -> None:
    frame = np.zeros((64, 64), np.uint16)
    frame[40, 10:12] = 3
    assert peaks_of(frame, geometry={"center": [0, 0]})["snr"].tolist() == [np.inf]


def test_places_in_stacks_and_in_images_of_several_panels() -> None:
    """As in one array of panels below each other, which is how CrystFEL names places."""
    stack = noise(3, 80, 100)
    add_peak(stack[1:2], 40, 60)
    add_peak(stack[2:3], 0, 20)
    add_peak(stack[2:3], 10, 98)
    corners = [[0, 0], [0, 110], [90, 0]]
    found = peaks_of(stack, geometry={"center": [-60, 0], "panel_corners": corners})
    assert found["panel"].tolist() == [1, 2, 2]
    assert np.rint(found["ss"] - 1 / 3).tolist() == [120, 160, 170]
    assert np.rint(found["fs"] - 0.5).tolist() == [60, 20, 98]
    image = stack[:2].reshape(160, 100)
    add_peak(image, 19, 49)
    geometry = {"center": [-60, 0]}
    assert peaks_of(image, geometry=geometry)["panel"].tolist() == [0, 0]
    assert peaks_of(image, geometry=geometry, panel_shape=[80, 100])["panel"].tolist() == [0, 1]
    # The first lies in four panels: in each, all of it are outermost pixels, which start none.
    parts = peaks_of(image, geometry=geometry, panel_shape=[20, 50], min_pixels=1)
    assert parts["panel"].tolist() == [13]


def test_limits() -> None:
    frame = noise(64, 64)
    add_peak(frame, 20, 40)
    geometry = {"center": [20, 0]}
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 1),
        ({"min_pixels": 5}, 0),
        ({"max_pixels": 3}, 0),
        ({"threshold": 120}, 1),
        ({"threshold": 170}, 0),
        ({"min_snr": 100}, 0),
        ({"min_radius": 39}, 1),
        ({"min_radius": 45}, 0),
        ({"max_radius": 35}, 0),
    ]
    for options, count in cases:
        found = peaks_of(frame, geometry=geometry, **options)
        assert len(found["fs"]) == count, options


def test_no_more_peaks_than_asked_for() -> None:
    frame = noise(128, 64)
    for column in range(5, 60, 10):
        add_peak(frame, 50 + column, column)
    found = peaks_of(frame, geometry={"center": [0, 0]}, max_peaks=4, min_peaks=1)
    assert np.floor(found["fs"]).tolist() == [5, 15, 25, 35]


def hits(frames: list[Frame | None], **options: Any) -> Any:
    found = parameters(
        {"type": "PeakFinder8", "input": "x", "geometry": {"center": [0, 0]}, **options},
        x=random(128, 128, dtype="float32"),
    )
    return batches(found, [{"x": each} for each in frames])


def test_hits_are_told_and_others_dropped_if_wanted() -> None:
    blank, hit = noise(128, 128), noise(128, 128, seed=1)
    for column in range(5, 60, 10):
        add_peak(hit, 90, column)
    full, last = hits([blank, hit, None], min_peaks=6, output="p", hit="hit")
    assert full.arrays["hit"].tolist() == [0, 1]
    assert full.arrays["hit"].dtype == np.uint8
    assert full.arrays["p_count"].tolist() == [0, 6]
    assert full.ragged["p_fs"].offsets.tolist() == [0, 0, 6]
    assert last.valid["hit"][0] == last.valid["p_snr"][0] == 0
    (only,) = hits([blank, hit, None], min_peaks=6, veto=True)
    assert (only.count, only.index[0]) == (1, 1)


def test_masks_for_all_events_and_for_one(tmp_path: Path) -> None:
    frame = noise(64, 64)
    add_peak(frame, 20, 40)
    add_peak(frame, 40, 20)
    good = np.ones((64, 64), np.uint8)
    good[40:42, 20:22] = 0
    np.save(tmp_path / "m.npy", good)
    geometry = {"center": [32, 32]}
    one = peaks_of(frame, good, geometry=geometry)
    all_events = peaks_of(frame, geometry=geometry, mask={"file": str(tmp_path / "m.npy")})
    assert np.floor(one["fs"]).tolist() == np.floor(all_events["fs"]).tolist() == [40]


def test_frames_may_change_their_shape_and_dtype() -> None:
    step = finder(geometry={"center": [10, 10]}, min_peaks=1)
    for index, (shape, dtype) in enumerate(
        [((64, 64), "f4"), ((40, 70), "f4"), ((40, 70), "u2"), ((64, 64), ">i4")]
    ):
        frame = noise(*shape)
        add_peak(frame, 20, 30)
        after = applied(step, {"x": frame.astype(dtype)}, index)
        assert array(after["peaks_count"]) == 1, (shape, dtype)


def test_what_does_not_fit_is_named() -> None:
    for options, shape, text in (
        ({"geometry": {"center": [0, 0]}}, (2, 8, 8), "is a stack of panels"),
        ({"geometry": {"center": [0, 0]}, "panel_shape": [3, 8]}, (8, 8), "not made of panels"),
        ({"geometry": {"center": [1e9, 0]}}, (8, 8), "farther from the beam"),
        ({"geometry": {"center": [0, 0]}}, (8,), "no rows and columns"),
        ({"geometry": {"center": [0, 0]}}, (0, 8), "no rows and columns"),
    ):
        with pytest.raises(InvalidConfigError) as caught:
            finder(**options).apply(event(), {"x": np.zeros(shape)})
        assert text in str(caught.value)


# Simulated crystals


def simulated(count: int, **source: Any) -> tuple[dict[str, Any], list[tuple[Values, Frame]]]:
    """Return options for the finder, and events with their true (panel, row, column, photons)."""
    config = SimulatedDetectorEventSourceConfig(events=count, shape=(256, 256), **source)
    panels = diffraction.Panels(config.panels, config.shape)
    height, width = panels.image_shape
    geometry = {
        "center": [height / 2, width / 2],
        "panel_corners": [panels.corner(panel) for panel in range(config.panels)],
    }
    events = []
    for index in range(count):
        readings = expected_event(config, index).readings
        assert isinstance(readings, SimulatedReadings)
        values: Values = {
            "x": np.asarray(readings.read("jungfrau", "raw.calib")),
            "m": np.asarray(readings.read("jungfrau", "raw.mask")),
        }
        events.append((values, readings._spots))
    return {"geometry": geometry, "mask": {"value": "m"}, "max_pixels": 30}, events


@pytest.mark.parametrize(("panels", "sampled"), [(2, None), (4, 300)])
def test_simulated_peaks_are_found_and_no_others(panels: int, sampled: int | None) -> None:
    options, events = simulated(16, panels=panels)
    step = finder(**options, pixels_per_ring=sampled)
    bright, seen, false = 0, 0, 0
    for values, spots in events:
        after = applied(step, values)
        assert bool(array(after["is_hit"])) == bool(len(spots))
        panel = ragged(after["peaks_panel"])
        row, column = ragged(after["peaks_ss"]) - 256 * panel, ragged(after["peaks_fs"])
        mine = np.stack([panel * 1e4, row, column], axis=1)
        distance = np.linalg.norm(mine[:, None] - spots[:, :3] * [1e4, 1, 1], axis=-1)
        is_bright = spots[:, 3] > 150
        bright += int(is_bright.sum())
        seen += int((distance.min(axis=0, initial=9) < 1.5)[is_bright].sum())
        false += int((distance.min(axis=1, initial=9) > 3).sum())
    assert bright > 50
    assert seen / bright > 0.9
    assert false <= 0.02 * seen


# A real detector


@pytest.mark.skipif(not CSPAD.is_file(), reason="no CSPAD frames on this machine")
@pytest.mark.parametrize("sampled", [None, 400])
def test_thermolysin_on_a_cspad(sampled: int | None) -> None:
    """CrystFEL found 179 and 153 peaks with the same limits."""
    step = finder(
        geometry={"crystfel": str(GEOMETRY)},
        threshold=150,
        min_snr=6,
        max_pixels=30,
        local_background_radius=4,
        min_radius=30,
        pixels_per_ring=sampled,
    )
    with h5py.File(CSPAD) as file:
        frames = file["entry/data/data"][...]
    counts = []
    for frame in frames:
        after = applied(step, {"x": frame})
        assert array(after["is_hit"]) == 1
        counts.append(int(array(after["peaks_count"])))
        panel = ragged(after["peaks_ss"]) // 185 * 2 + ragged(after["peaks_fs"]) // 194
        # A centre may lie between two panels by half a pixel.
        assert np.mean(panel == ragged(after["peaks_panel"])) > 0.95
    assert counts == [pytest.approx(179, rel=0.03), pytest.approx(153, rel=0.03)]
