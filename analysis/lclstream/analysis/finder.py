"""Finds Bragg peaks in one detector frame.

Each panel is divided into square tiles. Mean and sigma of a tile's background are measured from
its good pixels, without those that stick out by more than `CLIP_SIGMA`, three times over. Pixels
that are far enough above their background and touch each other (also at corners, never across
panels) are a peak if there are neither too few nor too many of them.

Pixels that a mask marks as bad, and those that are not finite, take no part.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lclstream.analysis.settings import PeakSettings

Floats: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]

CLIP_SIGMA = 4.0
CLIP_ROUNDS = 3
# Fewer good pixels than this tell nothing about a background.
FEWEST_GOOD = 16
# Neighbours in the same panel, corners included.
TOUCHING = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))], np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The peaks of one frame, brightest first; one element of every array for each peak."""

    panel: npt.NDArray[np.int32]
    row: Floats
    """Centre of mass within the panel, in pixels; the centre of the first pixel is 0."""
    column: Floats
    intensity: Floats
    """Sum above background, in the units of the frame."""
    snr: Floats
    """Height of the highest pixel above background, in sigma."""
    pixels: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.panel)


class PeakFinder:
    """Finds peaks in frames of any shape; not for use by several threads at once."""

    def __init__(self, settings: PeakSettings) -> None:
        self.settings = settings

    def find(self, frame: npt.NDArray[np.generic], mask: Bools | None = None) -> Peaks:
        """Return the peaks of a frame.

        Args:
            frame: (rows, columns) or (panels, rows, columns); more leading axes count as panels.
            mask: False where a pixel is bad; the shape of the frame.
        """
        with np.errstate(over="ignore"):
            stack = panels_of(frame).astype(np.float32)
        stack[~np.isfinite(stack)] = np.nan
        if mask is not None:
            stack[~panels_of(mask).astype(bool, copy=False)] = np.nan
        tile = min(self.settings.tile, *stack.shape[1:])
        tiles = _tiled(stack, tile)
        mean, sigma = _background(tiles)
        height = np.maximum(self.settings.snr * sigma, self.settings.threshold)
        # NaN is above nothing.
        strong = _untiled(tiles > (mean + height)[..., None], stack.shape, tile)
        return self._peaks(stack, strong, mean, sigma, tile)

    def _peaks(self, stack: Floats, strong: Bools, mean: Floats, sigma: Floats, tile: int) -> Peaks:
        labels, count = ndimage.label(strong, TOUCHING)
        places = np.nonzero(strong)
        label = labels[places] - 1
        panel, row, column = places
        where = (panel, row // tile, column // tile)
        above = stack[places] - mean[where]
        pixels = np.bincount(label, minlength=count)
        intensity = np.bincount(label, above, count)
        snr = np.zeros(count, np.float32)
        np.maximum.at(snr, label, above / np.maximum(sigma[where], np.finfo(np.float32).tiny))
        good = (pixels >= self.settings.min_pixels) & (pixels <= self.settings.max_pixels)
        # A peak of zero weight cannot be: each of its pixels is above the background.
        chosen = np.flatnonzero(good)[np.argsort(-intensity[good], kind="stable")]
        first = np.zeros(count, np.int32)
        first[label] = panel
        centre = {
            name: (np.bincount(label, above * axis, count)[chosen] / intensity[chosen])
            for name, axis in (("row", row), ("column", column))
        }
        return Peaks(
            panel=first[chosen],
            row=centre["row"].astype(np.float32),
            column=centre["column"].astype(np.float32),
            intensity=intensity[chosen].astype(np.float32),
            snr=snr[chosen],
            pixels=pixels[chosen].astype(np.int32),
        )


def panels_of(frame: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return a frame as (panels, rows, columns)."""
    return frame.reshape(-1, *frame.shape[-2:])


def _tiled(stack: Floats, tile: int) -> Floats:
    """Return (panels, tile rows, tile columns, pixels); the last tiles are filled with NaN."""
    panels, rows, columns = stack.shape
    down, across = -(-rows // tile), -(-columns // tile)
    if (down * tile, across * tile) != (rows, columns):
        whole = np.full((panels, down * tile, across * tile), np.nan, np.float32)
        whole[:, :rows, :columns] = stack
        stack = whole
    squares = stack.reshape(panels, down, tile, across, tile).swapaxes(2, 3)
    return np.ascontiguousarray(squares).reshape(panels, down, across, tile * tile)


def _untiled(tiles: Bools, shape: tuple[int, ...], tile: int) -> Bools:
    panels, down, across, _ = tiles.shape
    squares = tiles.reshape(panels, down, across, tile, tile).swapaxes(2, 3)
    whole = squares.reshape(panels, down * tile, across * tile)
    return whole[:, : shape[1], : shape[2]]


def _background(tiles: Floats) -> tuple[Floats, Floats]:
    """Return mean and sigma of each tile; infinite where nothing is known."""
    counted = np.isfinite(tiles)
    mean, sigma, good = _moments(tiles, counted)
    widest = sigma
    for _ in range(CLIP_ROUNDS - 1):
        reach = (CLIP_SIGMA * sigma)[..., None]
        counted = np.abs(tiles - mean[..., None]) <= reach
        mean, sigma, _ = _moments(tiles, counted)
    # Where clipping leaves a constant, such as rare photons on zeros, it went too far.
    sigma = np.where(sigma > 0, sigma, widest)
    known = good >= FEWEST_GOOD
    return np.where(known, mean, np.inf), np.where(known, sigma, 1.0)


def _moments(tiles: Floats, counted: Bools) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    count = np.count_nonzero(counted, axis=-1)
    divisor = np.maximum(count, 1).astype(np.float32)
    values = np.where(counted, tiles, np.float32(0))
    mean = values.sum(axis=-1) / divisor
    # Around the mean, because squares of large numbers lose the small differences.
    values -= mean[..., None]
    values *= counted
    sigma = np.sqrt(np.einsum("...i,...i->...", values, values) / divisor)
    return mean.astype(np.float32), sigma.astype(np.float32), count
