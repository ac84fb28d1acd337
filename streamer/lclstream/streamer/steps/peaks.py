"""Finds Bragg peaks as the peakfinder8 of Cheetah and CrystFEL does.

1. Pixels are sorted into rings around the beam, one pixel wide. Mean and sigma of each ring are
   measured, five times over, the second time on without the pixels that stick out by more than
   `min_snr` sigma, or are above the threshold. A pixel is high when it is above
   max(mean + min_snr * sigma, threshold) of its ring.
2. High pixels of one panel that touch, also at corners, are a group. The outermost pixels of a
   panel start none. Groups that are too small or too large are left out.
3. Around the centre of mass, in a circle of twice `local_background_radius`, mean and sigma of
   those pixels are measured that are neither high nor in a group. The group is a peak if its sum
   above that mean is at least `min_snr` times that sigma, and its highest pixel not below the
   highest of these pixels.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.streamer.config import Parameters
from lclstream.streamer.config.diffraction_steps import PeakFinder8Config
from lclstream.streamer.events import Event
from lclstream.streamer.steps.frames import Floats, Frames
from lclstream.streamer.steps.mapping import misfit
from lclstream.streamer.steps.ring_kernels import grow_peaks, measure_peaks, ring_sums
from lclstream.streamer.values import Ragged, Reading, Values

Doubles: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int32]

ROUNDS = 5
LARGEST = float(np.finfo(np.float64).max)
# Of the choice of pixels in which rings are measured; any other is as good.
SAMPLE_SEED = 8


class PeakFinder8:
    """Finds the peaks of frames, and drops events that are no hits if that is wanted."""

    def __init__(self, config: PeakFinder8Config, parameters: Parameters) -> None:
        """Read geometry and mask.

        Raises:
            InvalidConfigError: they cannot be read.
        """
        del parameters
        self._config = config
        self._frames = Frames(config)
        self._plan: _Plan | None = None
        self._nothing = dict.fromkeys(name for _, name in config.makes())
        # What the plan calls a column -> its name among the values, and its dtype.
        self._columns = [
            (name.removeprefix(f"{config.output}_"), name, np.dtype(dtype))
            for name, dtype in config.columns.items()
        ]

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return the values with the peaks; all of them are missing where the frame is.

        Raises:
            InvalidConfigError: the frame does not fit geometry, mask or panels.
        """
        del event
        found = self._found(values)
        if found is None:
            return None if self._config.veto else {**values, **self._nothing}
        is_hit = len(found["pixels"]) >= self._config.min_peaks
        if self._config.veto and not is_hit:
            return None
        made: dict[str, Reading] = {
            name: Ragged(found[column].astype(dtype)) for column, name, dtype in self._columns
        }
        made[f"{self._config.output}_count"] = np.array(len(found["pixels"]), np.uint32)
        made[self._config.hit] = np.array(is_hit, np.uint8)
        return {**values, **made}

    def _found(self, values: Values) -> dict[str, Doubles] | None:
        """Return the columns of the list of peaks."""
        frame = self._frames.frame(values)
        if frame is None:
            return None
        if self._plan is None or self._plan.shape != frame.shape:
            self._plan = _Plan(self._config, self._frames, frame.shape)
        slab = self._frames.slab(frame, values)
        return None if slab is None else self._plan.find(slab)


class _Plan:
    """All that depends on the shape of the frames only, and room for the work."""

    def __init__(self, config: PeakFinder8Config, frames: Frames, shape: tuple[int, ...]) -> None:
        self._config, self.shape = config, shape
        pixels = frames.pixels(shape)
        self._panel = config.panel_shape or pixels.panel_shape or (shape[-2], shape[-1])
        radius = pixels.radius.reshape(-1, shape[-1])
        sizes = zip(shape[-2:], self._panel, strict=True)
        if not radius.size or any(size % panel for size, panel in sizes):
            text = f"has shape {shape}, which is not made of panels {self._panel}"
            raise misfit(config, config.input, text)
        self._rings = self._rings_of(radius)
        self._count = int(self._rings.max(initial=0)) + 1
        # What takes no part is in a ring of its own, in which nothing is high.
        self._rings[self._rings < 0] = self._count
        self._sample = _sample(self._rings.ravel(), self._count, config.pixels_per_ring)
        self._taken = np.zeros(radius.shape, np.uint8)
        self._members = np.empty((radius.size, 2), np.int32)
        self._extents = np.zeros(config.max_peaks + 1, np.int32)

    def find(self, pixels: Floats) -> dict[str, Doubles]:
        """Return the peaks of a frame (rows, columns)."""
        config = self._config
        mean, sigma, high = self._statistics(pixels)
        self._taken.fill(0)
        place = pixels, self._rings, high, mean, self._panel
        limits = config.min_pixels, config.max_pixels
        rest = self._taken, self._members, self._extents
        number = int(grow_peaks(*place, limits, *rest))
        results = np.empty((number, 6))
        reach = 2 * config.local_background_radius
        measure_peaks(*place, reach, *rest, number, results)
        return self._chosen(results, sigma, number)

    def _chosen(self, results: Doubles, sigma: Doubles, number: int) -> dict[str, Doubles]:
        columns, rows, intensity, local, maximum, around = results.T
        first = self._members[self._extents[:number]]
        # Where all pixels around are alike, the ring tells how noisy they might be.
        noise = np.where(local > 0, local, sigma[self._rings[first[:, 0], first[:, 1]]])
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = intensity / noise
            fs, ss = columns / intensity, rows / intensity
        good = (intensity > 0) & (snr >= self._config.min_snr) & (maximum >= around)
        panel = first[:, 0] // self._panel[0] * (self.shape[-1] // self._panel[1])
        found = {
            "fs": fs,
            "ss": ss,
            "panel": panel + first[:, 1] // self._panel[1],
            "intensity": intensity,
            "snr": snr,
            "maximum": maximum,
            "pixels": np.diff(self._extents[: number + 1]),
        }
        return {name: column[good] for name, column in found.items()}

    def _statistics(self, pixels: Floats) -> tuple[Doubles, Doubles, Doubles]:
        """Return mean, sigma and the limit of high pixels of each ring."""
        values, rings = pixels.ravel(), self._rings.ravel()
        if self._sample is not None:
            values, rings = values[self._sample], rings[self._sample]
        # Infinite pixels never count, and those of the last ring are neither high nor background.
        high = np.full(self._count + 1, LARGEST)
        low = -high
        high[-1] = np.nan
        snr = self._config.min_snr
        for _ in range(ROUNDS):
            sums, squares = np.zeros(self._count + 1), np.zeros(self._count + 1)
            counts = np.zeros(self._count + 1, np.int64)
            ring_sums(values, rings, low, high, sums, squares, counts)
            number = np.maximum(counts, 1)
            mean = sums / number
            with np.errstate(invalid="ignore", over="ignore"):
                sigma = np.sqrt(np.maximum(squares / number - mean * mean, 0))
            is_known = counts > 0
            before = low, high
            low = np.where(is_known, mean - snr * sigma, -LARGEST)
            high = np.maximum(mean + snr * sigma, self._config.threshold)
            high = np.where(is_known, high, np.inf)
            high[-1] = np.nan
            if np.array_equal(low, before[0]) and np.array_equal(high, before[1], equal_nan=True):
                break
        return mean, sigma, high

    def _rings_of(self, radius: Doubles) -> Integers:
        """Return the number of each pixel's ring, -1 for those that take no part."""
        most = np.inf if self._config.max_radius is None else self._config.max_radius
        takes_part = (radius >= self._config.min_radius) & (radius <= most)
        if np.nanmax(np.where(takes_part, radius, 0), initial=0) > radius.size:
            text = "has pixels farther from the beam than it has pixels at all"
            raise misfit(self._config, self._config.input, text)
        return np.where(takes_part, np.rint(radius), -1).astype(np.int32)


def _sample(rings: Integers, count: int, most: int | None) -> npt.NDArray[np.int64] | None:
    """Return some pixels of each ring, in their order; None for all of all rings.

    Args:
        rings: shape (pixels,); `count` for those that take no part.
        count: number of rings.
        most: pixels of each ring at most; None for all.
    """
    if most is None:
        return None
    shuffled = np.random.default_rng(SAMPLE_SEED).permutation(len(rings))
    order = shuffled[np.argsort(rings[shuffled], kind="stable")]
    sizes = np.bincount(rings, minlength=count + 1)
    begins = np.cumsum(sizes) - sizes
    rank = np.arange(len(rings)) - begins[rings[order]]
    return np.sort(order[(rank < most) & (rings[order] < count)])
