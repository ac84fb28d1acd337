"""From raw pixels to calibrated ones, against the formulas written down plainly."""

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from tests.helpers.area_detectors import (
    EPIX_CHIPS,
    EPIX_PANEL,
    EPIX_RANGES,
    JUNGFRAU_PANEL,
    JUNGFRAU_RANGES,
    constants,
    raw_panel,
)

from lclstream.core.errors import DecodeError, InvalidConfigError
from lclstream.streamer.calibration import epix10ka, jungfrau
from lclstream.streamer.calibration.common_mode import CommonMode
from lclstream.streamer.calibration.compiled import with_numba
from lclstream.streamer.calibration.constants import Constants, Detector, inverse
from lclstream.streamer.calibration.frames import Epix10kaFrames, JungfrauFrames, frames_of
from lclstream.streamer.calibration.planes import Calibrator, Planes, fastest, with_numpy

Array = np.ndarray[Any, Any]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def same_bits(one: Array, other: Array) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()


def test_numba_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest() is with_numba

    def missing(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr("importlib.import_module", missing)
    assert fastest() is with_numpy


def test_numba_and_numpy_give_the_same_bits(random: np.random.Generator) -> None:
    for share, (bits, codes), size in product(
        (0.0, 0.001, 0.04, 0.06, 0.5, 1.0),
        ((3, (0, 1, 3)), (1, (0, 1)), (3, (2, 1))),
        (1, 255, 1000, 5003),
    ):
        raw = random.integers(0, 1 << 14, size, np.uint16)
        switched = random.random(size) < share
        raw[switched] |= random.integers(0, 4, int(switched.sum()), np.uint16) << 14
        offsets = random.normal(3000, 100, (len(codes), size)).astype(np.float32)
        factors = random.normal(0, 1, (len(codes), size)).astype(np.float32)
        factors[:, ::10] = 0
        plain = np.zeros(size, np.float32)
        for place, code in enumerate(codes):
            here = (raw >> 14) & bits == code
            values = (raw[here] & 0x3FFF).astype(np.float32) - offsets[place][here]
            plain[here] = values * factors[place][here]
        for kernel in (with_numba, with_numpy):
            out = np.full(size, np.nan, np.float32)
            kernel(raw, offsets, factors, bits, np.array(codes, np.int32), out)
            assert same_bits(out, plain), (kernel, share, bits, codes, size)


def test_a_frame_is_used_again_only_when_nobody_holds_it() -> None:
    ones = np.ones((1, 1, 2, 4), np.float32)
    calibrate = Calibrator(Planes(offsets=ones * 0, factors=ones, bits=0, codes=(0,)))
    first = calibrate([np.full((2, 4), 1, np.uint16)])
    part = calibrate([np.full((2, 4), 2, np.uint16)])[0, 0]
    address = part.base is not None
    second = calibrate([np.full((2, 4), 3, np.uint16)])
    assert address
    assert (first[0, 0, 0], part[0], second[0, 0, 0]) == (1, 2, 3)
    place = second.ctypes.data
    del second
    assert calibrate([np.full((2, 4), 4, np.uint16)]).ctypes.data == place


def test_pixels_need_not_be_aligned() -> None:
    ones = np.ones((1, 1, 2, 4), np.float32)
    calibrate = Calibrator(Planes(offsets=ones, factors=ones * 2, bits=0, codes=(0,)))
    raw = np.frombuffer(bytes(range(17)), np.uint16, 8, 1).reshape(2, 4)
    assert not raw.flags.aligned
    assert np.array_equal(calibrate([raw])[0], ((raw & 0x3FFF).astype(np.float32) - 1) * 2)


@cache
def jungfrau_constants() -> dict[str, Array]:
    return constants(np.random.default_rng(8), JUNGFRAU_RANGES, 2, JUNGFRAU_PANEL)


class TestJungfrau:
    @pytest.fixture
    def found(self) -> dict[str, Array]:
        return jungfrau_constants()

    def test_the_formula(self, random: np.random.Generator, found: dict[str, Array]) -> None:
        raw = np.stack([raw_panel(random, JUNGFRAU_PANEL) for _ in range(2)])
        frames = JungfrauFrames(Constants(arrays=found), (0, 1))
        out = frames(list(raw), lambda name: [name])
        plain = np.zeros(raw.shape, np.float32)
        for bits, gain_range in ((0, 0), (1, 1), (3, 2)):
            here = raw >> 14 == bits
            offset = (found["pedestals"] + found["pixel_offset"])[gain_range]
            gain = found["pixel_gain"][gain_range]
            factor = np.divide(np.float32(1), gain, where=gain != 0, out=np.zeros_like(gain))
            values = ((raw & 0x3FFF).astype(np.float32) - offset) * factor
            plain[here] = values[here]
        plain[(found["pixel_status"] != 0).any(axis=0)] = 0
        assert out is not None
        assert np.array_equal(out, plain)
        assert np.count_nonzero(out) > 1_000_000

    def test_without_the_optional_constants(self, random: np.random.Generator) -> None:
        pedestals = random.normal(3000, 100, (3, 1, *JUNGFRAU_PANEL)).astype(np.float32)
        planes = jungfrau.planes_of(
            Constants(arrays={"pedestals": pedestals}), (0,), JUNGFRAU_PANEL
        )
        assert same_bits(planes.offsets, pedestals.swapaxes(0, 1).copy())
        assert (planes.factors == 1).all()

    def test_of_a_detector_that_is_read_in_part(self, found: dict[str, Array]) -> None:
        whole = jungfrau.planes_of(Constants(arrays=found), (0, 1), JUNGFRAU_PANEL)
        part = jungfrau.planes_of(Constants(arrays=found), (1,), JUNGFRAU_PANEL)
        assert same_bits(part.offsets, whole.offsets[1:])
        assert same_bits(part.factors, whole.factors[1:])

    def test_status_of_single_pixels_and_extra_status(self, found: dict[str, Array]) -> None:
        extra = np.zeros((2, *JUNGFRAU_PANEL), np.int32)
        extra[1, 5, 6] = 4
        arrays = {"pedestals": found["pedestals"], "status_extra": extra}
        planes = jungfrau.planes_of(Constants(arrays=arrays), (0, 1), JUNGFRAU_PANEL)
        assert np.argwhere(planes.factors == 0).tolist() == [[1, n, 5, 6] for n in range(3)]

    def test_constants_of_a_single_panel_may_lack_its_axis(self, found: dict[str, Array]) -> None:
        one = {name: array[:, 0] for name, array in found.items()}
        # As a fraction it counts as nothing, and what is no number is bad.
        one["pixel_status"] = one["pixel_status"].astype(np.float64)
        one["pixel_status"][2, 0, 1:4] = 0.5, 0, np.nan
        one["pixel_status"][:2, 0, 1:4] = 0
        with_axis = {name: array[:, None] for name, array in one.items()}
        planes, wanted = (
            jungfrau.planes_of(Constants(arrays=each), (0,), JUNGFRAU_PANEL)
            for each in (one, with_axis)
        )
        assert same_bits(planes.offsets, wanted.offsets)
        assert same_bits(planes.factors, wanted.factors)
        assert (planes.factors[0, 1, 0, 1:4] != 0).tolist() == [True, True, False]

    def test_constants_that_do_not_fit_are_refused(self, found: dict[str, Array]) -> None:
        gains = Constants(arrays={"pixel_gain": found["pixel_gain"]}, origin="here")
        with pytest.raises(InvalidConfigError, match=r"^here: no constants 'pedestals'; there are"):
            jungfrau.planes_of(gains, (0,), JUNGFRAU_PANEL)
        message = r"'pedestals' have shape \(3, 2, 512, 1024\), .* \(3, 3, 512, 1024\) of the data"
        with pytest.raises(InvalidConfigError, match=message):
            jungfrau.planes_of(Constants(arrays=found), (0, 1, 2), JUNGFRAU_PANEL)
        with pytest.raises(InvalidConfigError, match=r"have shape \(2, 2, 512, 1024\)"):
            jungfrau.planes_of(
                Constants(arrays={"pedestals": found["pedestals"][:2]}), (0, 1), JUNGFRAU_PANEL
            )


class TestEpix10ka:
    def test_ranges(self) -> None:
        for bits, *ranges in (
            (0b11100, 0, 0), (0b01100, 1, 1), (0b11000, 2, 2), (0b01000, 2, 2), (0b10000, 3, 5),
            (0b00000, 4, 6), (0b10111, -1, -1), (0b00100, -1, -1), (0b11111, 0, 0),
        ):  # fmt: skip
            one = np.array([[[bits]]], np.uint8)
            assert [int(each[0, 0, 0]) for each in epix10ka.ranges_of(one)] == ranges

    def test_chips_lie_around_the_centre(self) -> None:
        chips = np.zeros(EPIX_CHIPS, np.uint8)
        chips[:, 0, 0] = (4, 8, 12, 4)
        bits = epix10ka.control_bits({"asicPixelConfig": chips, "trbit": [1, 0, 0, 1]})
        assert bits.shape == EPIX_PANEL
        # Of the lower chips the first pixel is the first, of the upper ones the last.
        assert bits[176, 192] == 4 | 16
        assert bits[175, 383] == 8
        assert bits[175, 191] == 12
        assert bits[176, 0] == 4 | 16
        assert (bits != 0).sum() == 2 * 176 * 192 + 2

    def test_bits_of_pixels_count_as_they_are(self) -> None:
        bits = np.full(EPIX_PANEL, 28, np.uint8)
        assert epix10ka.control_bits({"cbitsConfig": bits, "trbit": []}) is not None
        with pytest.raises(DecodeError, match=r"cbitsConfig of uint8 \(2,\), expected integers"):
            epix10ka.control_bits({"cbitsConfig": bits[0, :2]})
        with pytest.raises(DecodeError, match=r"trbit of int64 \(3,\)"):
            epix10ka.control_bits(
                {"asicPixelConfig": np.zeros(EPIX_CHIPS, np.uint8), "trbit": [1, 1, 1]}
            )

    def test_pixels_take_the_constants_of_their_range(self, random: np.random.Generator) -> None:
        found = constants(random, EPIX_RANGES, 1, EPIX_PANEL)
        bits = np.zeros(EPIX_PANEL, np.uint8)
        bits[0, :3] = 28, 16, 4
        frames = Epix10kaFrames(Constants(arrays=found), (0,), is_by_pixel=True)
        raw = np.full(EPIX_PANEL, 3500, np.uint16)
        raw[0, 1] |= 0x4000
        out = frames([raw], lambda name: [bits])
        assert out is not None
        good = (found["pixel_status"][:5, 0] == 0).all(axis=0)
        factor = inverse(found["pixel_gain"], found["pixel_gain"])[:, 0]
        pedestals = found["pedestals"][:, 0]
        values = (np.float32(3500) - pedestals) * factor
        wanted = values[4] * good
        wanted[0, :2] = values[(0, 5), 0, (0, 1)] * good[0, :2]
        # This combination has no constants.
        wanted[0, 2] = 3500 * good[0, 2]
        assert np.array_equal(out[0], wanted)

    def test_a_new_configuration_counts_from_then_on(self, random: np.random.Generator) -> None:
        found = constants(random, EPIX_RANGES, 1, EPIX_PANEL)
        frames = Epix10kaFrames(Constants(arrays=found), (0,), is_by_pixel=True)
        raw = [np.full(EPIX_PANEL, 3500, np.uint16)]
        one, other = np.full(EPIX_PANEL, 28, np.uint8), np.full(EPIX_PANEL, 12, np.uint8)
        found_frames: list[Any] = []
        for bits in (one, other, one):
            configured: dict[str, list[Any]] = {"cbitsConfig": [bits]}
            found_frames.append(frames(raw, configured.__getitem__))
        first, second, third = found_frames
        assert not np.array_equal(first, second)
        assert np.array_equal(first, third)
        assert frames(raw, lambda name: [None]) is None

    def test_what_is_needed_is_asked_for(self, random: np.random.Generator) -> None:
        found = Constants(arrays=constants(random, EPIX_RANGES, 1, EPIX_PANEL), origin="here")
        with pytest.raises(InvalidConfigError, match=r"no config.cbitsConfig or asicPixelConfig"):
            frames_of("epix10ka", ("raw.raw",), found, (0,))
        no_gain = Constants(arrays={"pedestals": found.arrays["pedestals"]}, origin="here")
        with pytest.raises(InvalidConfigError, match=r"^here: no constants 'pixel_gain'"):
            frames_of("epix10ka", ("config.cbitsConfig",), no_gain, (0,))


class TestCommonMode:
    def plainly(self, panel: Array, good: Array, mode: CommonMode) -> Array:
        """Return what is left, by masked arrays of numpy."""
        out = panel.copy()
        halves = [slice(0, 176), slice(176, 352)]
        banks = [slice(start, start + 48) for start in range(0, 384, 48)]
        if mode.mode & 4:
            for rows in halves:
                for columns in banks:
                    here, chosen = out[rows, columns], good[rows, columns]
                    median: Any = np.median(here[chosen]) if chosen.any() else 0
                    if chosen.sum() >= mode.fewest and abs(median) < mode.largest:
                        here[chosen] -= median
        pieces = [(out[:, each], good[:, each], 1) for each in banks if mode.mode & 1]
        pieces += [(out[each], good[each], 0) for each in halves if mode.mode & 2]
        for here, chosen, axis in pieces:
            masked = np.ma.masked_array(here, ~chosen)
            medians = np.ma.filled(np.ma.median(masked, axis=axis), 0)  # type: ignore[no-untyped-call]
            medians[chosen.sum(axis=axis) <= mode.fewest] = 0
            medians[np.abs(medians) >= mode.largest] = 0
            spread = np.expand_dims(medians, axis) * np.ones_like(here)
            here[chosen] -= spread[chosen]
        return out

    @pytest.mark.parametrize("numbers", [(7, 1, 20), (7, 2, 20, 3), (7, 4, 20, 100), (6, 7, 8)])
    def test_medians_are_subtracted(
        self, random: np.random.Generator, numbers: tuple[float, ...]
    ) -> None:
        mode = CommonMode.of(np.array(numbers), "here")
        panel = random.normal(5, 10, EPIX_PANEL).astype(np.float32)
        good = random.random(EPIX_PANEL) < 0.3
        good[:, 60:70] = False
        good[30] = False
        left = panel[None].copy()
        mode.remove(left, good[None])
        assert same_bits(left[0], self.plainly(panel, good, mode))
        assert not np.array_equal(left[0], panel)

    def test_too_few_numbers_are_refused(self) -> None:
        with pytest.raises(InvalidConfigError, match=r"^here: .* at least 3 numbers, got \[7\]$"):
            CommonMode.of(np.array([7]), "here")


def test_the_long_name_of_a_detector() -> None:
    detector = Detector("cam", "epix10ka", {3: "c", 0: "a"})
    assert (detector.segments, detector.unique) == ((0, 3), "epix10ka_a_c")
