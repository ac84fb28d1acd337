"""The physics of the simulated detector: crystals, their reflections, noise, bad pixels.

Only sums, products, quotients and square roots of IEEE numbers and the raw bits of PCG64 are
used. All of these give the same result on every machine and with every numpy, so that a
receiver elsewhere makes the same pixels, bit for bit. (Sines, exponentials and numpy's
distributions do not promise that.)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lclstream.streamer.config import SimulatedDetectorEventSourceConfig

# What one photon adds to a pixel, and what a pixel without light reads.
ADU_PER_PHOTON = 40.0
PEDESTAL_ADU = 1000.0
READ_NOISE_ADU = 6.0
HOT_PIXEL_ADU = 60_000
DEAD_PIXEL_ADU = 0

# How far (1/angstrom) a reflection may be from the Ewald sphere and still be seen.
EXCITATION_WIDTH = 0.0015
# Reflections of lowest resolution that are looked at; the rest is too weak to see.
REFLECTIONS = 6000
BRIGHTEST_PHOTONS = 1000.0
SPOT_RADIUS = 2
# Pixels between two panels of the assembled image.
PANEL_GAP = 8
# Each event's noise begins somewhere else in a bank that is this much longer than a frame.
NOISE_SLACK = 1 << 16

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def draws(seed: int, *key: int, count: int) -> npt.NDArray[np.uint64]:
    """Return random 64-bit numbers that depend on nothing but the arguments."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, *key]))
    return np.asarray(bits.random_raw(count), dtype=np.uint64)


def fractions(raw: npt.NDArray[np.uint64]) -> Doubles:
    """Turn raw 64-bit numbers into doubles in [0, 1)."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def noise_bank(seed: int, count: int, number: int = 0) -> Floats:
    """Return bounded, nearly normal noise of mean 0 and width 1: sums of four uniform numbers.

    Args:
        seed: of the simulation.
        count: how many.
        number: of the detector that they are for.
    """
    quarters = draws(seed, 1, number, count=count).view(np.uint16).reshape(count, 4)
    sums = quarters.sum(axis=1, dtype=np.int64) - 2 * 65535
    width = 65536.0 / 3.0**0.5
    return np.asarray(sums / width, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Spots:
    """Where Bragg peaks fall, in rows and columns of the assembled image."""

    rows: Doubles
    columns: Doubles
    photons: Doubles


class Crystal:
    """The reflections of one kind of crystal at one wavelength."""

    def __init__(self, config: SimulatedDetectorEventSourceConfig) -> None:
        self._wave = 1.0 / config.wavelength_angstrom
        self._scale = config.distance_mm / (config.pixel_um * 1e-3)
        edges = np.array([1.0 / edge for edge in config.cell_angstrom])
        # A box of indices that holds at least REFLECTIONS of the lowest resolution.
        reach = (REFLECTIONS * edges[0] * edges[1] * edges[2] * 0.2387) ** (1.0 / 3.0)
        spans = [np.arange(-int(reach / e) - 1, int(reach / e) + 2) for e in edges]
        grid = np.stack([each.ravel() for each in np.meshgrid(*spans, indexing="ij")])
        q = grid * edges[:, None]
        length = np.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2])
        order = np.argsort(length, kind="stable")[1 : REFLECTIONS + 1]
        self._q = q[:, order]
        falloff = 1.0 + (length[order] / 0.12) ** 2
        strength = fractions(draws(config.seed, 2, count=len(order)))
        self._photons = BRIGHTEST_PHOTONS * (0.1 + 0.9 * strength) / (falloff * falloff)

    def spots(self, rotation: Doubles, most: int) -> Spots:
        """Return the reflections that a crystal of this orientation sends forward.

        Args:
            rotation: 3 x 3.
            most: how many to keep, those of lowest resolution.
        """
        x, y, z = (
            row[0] * self._q[0] + row[1] * self._q[1] + row[2] * self._q[2] for row in rotation
        )
        forward = self._wave + z
        off = np.sqrt(x * x + y * y + forward * forward) - self._wave
        seen = np.flatnonzero((np.abs(off) < EXCITATION_WIDTH) & (forward > 0))[:most]
        closeness = 1.0 - np.abs(off[seen]) / EXCITATION_WIDTH
        return Spots(
            rows=self._scale * y[seen] / forward[seen],
            columns=self._scale * x[seen] / forward[seen],
            photons=self._photons[seen] * (0.2 + 0.8 * closeness),
        )


def random_rotation(raw: npt.NDArray[np.uint64]) -> Doubles:
    """Return a uniformly random rotation from raw numbers (Marsaglia's quaternions)."""
    pairs = 2.0 * fractions(raw).reshape(-1, 2) - 1.0
    squares = pairs[:, 0] * pairs[:, 0] + pairs[:, 1] * pairs[:, 1]
    inside = np.flatnonzero((squares < 1.0) & (squares > 0.0))
    if len(inside) < 2:
        return np.eye(3)
    first, second = inside[:2]
    factor = np.sqrt((1.0 - squares[first]) / squares[second])
    w, x = pairs[first]
    y, z = pairs[second] * factor
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


class Panels:
    """How the panels of a detector lie: in two columns if more than two, beam in the middle."""

    def __init__(self, panels: int, shape: tuple[int, int]) -> None:
        self.panels = panels
        self.height, self.width = shape
        self._columns = 1 if panels <= 2 else 2
        down = -(-panels // self._columns)
        self.image_shape = (
            down * (self.height + PANEL_GAP) - PANEL_GAP,
            self._columns * (self.width + PANEL_GAP) - PANEL_GAP,
        )

    def corner(self, panel: int) -> tuple[int, int]:
        """Return the row and column of a panel's first pixel in the assembled image."""
        row, column = divmod(panel, self._columns)
        return row * (self.height + PANEL_GAP), column * (self.width + PANEL_GAP)

    def radius(self) -> Doubles:
        """Return the distance in pixels of each pixel of the stack from the beam."""
        distances = np.empty((self.panels, self.height, self.width))
        for panel in range(self.panels):
            top, left = self.corner(panel)
            rows = np.arange(self.height)[:, None] + (top - self.image_shape[0] / 2)
            columns = np.arange(self.width)[None, :] + (left - self.image_shape[1] / 2)
            distances[panel] = np.sqrt(rows * rows + columns * columns)
        return distances

    def assemble(self, stack: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return one image of a stack of panels; 0 between them."""
        image = np.zeros(self.image_shape, stack.dtype)
        for panel in range(self.panels):
            top, left = self.corner(panel)
            image[top : top + self.height, left : left + self.width] = stack[panel]
        return image

    def place(self, spots: Spots) -> npt.NDArray[np.float64]:
        """Return (panel, row, column, photons) of the spots that fall on a panel."""
        rows = spots.rows + self.image_shape[0] / 2
        columns = spots.columns + self.image_shape[1] / 2
        found = []
        for panel in range(self.panels):
            top, left = self.corner(panel)
            r, c = rows - top, columns - left
            edge = SPOT_RADIUS + 1
            inside = (r >= edge) & (r < self.height - edge) & (c >= edge) & (c < self.width - edge)
            which = np.flatnonzero(inside)
            panels = np.full(len(which), float(panel))
            found.append(np.stack([panels, r[which], c[which], spots.photons[which]], axis=1))
        return np.concatenate(found)
