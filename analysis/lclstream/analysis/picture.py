"""The picture of a result: mean frame with the peaks on it, and the hit rate against time.

Uses figure objects only, no state shared with other users of matplotlib in the process.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lclstream.core.files import write_atomically

SIZE_INCHES = (13.0, 6.5)
DOTS_PER_INCH = 110
# More pixels than the picture has are averaged, more circles than anybody can see left out.
MOST_PIXELS = 1400
MOST_CIRCLES = 20_000
MOST_BINS = 60
EVENTS_PER_BIN = 20
GAP_PIXELS = 4

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureData:
    """What is drawn."""

    title: str
    mean: Doubles | None
    """Mean frame (panels, rows, columns), NaN where unknown."""
    panel: npt.NDArray[np.int32]
    """Of each peak, as row and column."""
    row: npt.NDArray[np.float32]
    column: npt.NDArray[np.float32]
    time_s: Doubles
    """Of each event with a frame, seconds since the first, or its index."""
    hit: npt.NDArray[np.bool_]
    time_label: str


def draw(path: Path, data: PictureData) -> Path:
    """Draw a PNG and put it into its place in one step."""
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    frame_axes, rate_axes = figure.subplots(1, 2, width_ratios=[3, 2])
    figure.suptitle(data.title)
    _draw_frame(figure, frame_axes, data)
    _draw_rate(rate_axes, data)
    memory = io.BytesIO()
    figure.savefig(memory, format="png")
    write_atomically(path, memory.getvalue())
    return path


def _draw_frame(figure: Figure, axes: Any, data: PictureData) -> None:
    axes.set_title("mean frame and peaks")
    axes.set_xticks([])
    axes.set_yticks([])
    if data.mean is None:
        axes.text(0.5, 0.5, "no frame", ha="center", transform=axes.transAxes)
        return
    panels, rows, columns = data.mean.shape
    across = _panels_across(panels, rows, columns)
    canvas, step = _assembled(data.mean, across)
    finite = canvas[np.isfinite(canvas)]
    low, high = np.percentile(finite, [1.0, 99.5]) if finite.size else (0.0, 1.0)
    extent = (-0.5, canvas.shape[1] * step - 0.5, canvas.shape[0] * step - 0.5, -0.5)
    image = axes.imshow(
        canvas, cmap="viridis", vmin=low, vmax=max(high, low + 1e-12), extent=extent
    )
    figure.colorbar(image, ax=axes, shrink=0.7, label="mean value")
    every = max(1, math.ceil(len(data.panel) / MOST_CIRCLES))
    panel = data.panel[::every]
    x = data.column[::every] + (panel % across) * (columns + GAP_PIXELS)
    y = data.row[::every] + (panel // across) * (rows + GAP_PIXELS)
    axes.scatter(x, y, s=8, facecolors="none", edgecolors="red", linewidths=0.4, alpha=0.6)


def _panels_across(panels: int, rows: int, columns: int) -> int:
    """Return how many panels lie side by side so that the whole is about as wide as high."""
    return max(1, round(math.sqrt(panels * rows / columns)))


def _assembled(stack: Doubles, across: int) -> tuple[Doubles, int]:
    """Return all panels in one image, and how many pixels each of its pixels averages."""
    panels, rows, columns = stack.shape
    down = -(-panels // across)
    height, width = down * (rows + GAP_PIXELS), across * (columns + GAP_PIXELS)
    step = max(1, math.ceil(max(height, width) / MOST_PIXELS))
    height, width = (-(-edge // step) * step for edge in (height, width))
    image = np.full((height, width), np.nan)
    for panel in range(panels):
        top = panel // across * (rows + GAP_PIXELS)
        left = panel % across * (columns + GAP_PIXELS)
        image[top : top + rows, left : left + columns] = stack[panel]
    if step > 1:
        squares = image.reshape(height // step, step, width // step, step)
        known = np.isfinite(squares)
        count = known.sum(axis=(1, 3))
        total = np.where(known, squares, 0.0).sum(axis=(1, 3))
        image = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return image, step


def _draw_rate(axes: Any, data: PictureData) -> None:
    axes.set_title(f"hit rate: {data.hit.mean():.1%}" if len(data.hit) else "hit rate")
    axes.set_xlabel(data.time_label)
    axes.set_ylabel("hits / events")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    if not len(data.hit):
        return
    bins = min(MOST_BINS, max(1, len(data.hit) // EVENTS_PER_BIN))
    end = max(float(data.time_s.max()), 1e-9)
    edges = np.linspace(0.0, end * (1 + 1e-9), bins + 1)
    events, _ = np.histogram(data.time_s, edges)
    hits, _ = np.histogram(data.time_s[data.hit], edges)
    seen = events > 0
    rate = hits[seen] / events[seen]
    error = np.sqrt(np.maximum(rate * (1 - rate), 1 / events[seen]) / events[seen])
    centres = ((edges[:-1] + edges[1:]) / 2)[seen]
    axes.errorbar(centres, rate, yerr=error, fmt="o-", markersize=3, linewidth=1, capsize=2)
