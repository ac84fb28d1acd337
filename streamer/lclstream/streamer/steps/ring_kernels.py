"""The inner loops over pixels in rings, and around peaks; compiled when they are called first.

They are written as loops so that every pixel is looked at once, and so that each sum is added up
in the order of the pixels, as a plain program does it: the result is the same.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.streamer.machine_code import MachineCode

Pixels: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Doubles: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int32]
Bytes: TypeAlias = npt.NDArray[np.uint8]


def _ring_sums(
    pixels: Pixels,
    rings: Integers,
    low: Doubles,
    high: Doubles,
    sums: Doubles,
    squares: Doubles,
    counts: npt.NDArray[np.int64],
) -> None:
    for i in range(pixels.size):
        ring = rings[i]
        value = np.float64(pixels[i])
        # NaN is between nothing. What is alike must count, or a ring of zeros would have no mean.
        if low[ring] <= value and value <= high[ring]:
            sums[ring] += value
            squares[ring] += value * value
            counts[ring] += 1


def _grow_peaks(
    pixels: Pixels,
    rings: Integers,
    high: Doubles,
    mean: Doubles,
    panel: Any,
    limits: Any,
    taken: Bytes,
    members: Integers,
    extents: Integers,
) -> Any:
    rows, columns = pixels.shape
    panel_rows, panel_columns = panel
    min_pixels, max_pixels = limits
    found = 0
    kept = 0
    for top in range(0, rows, panel_rows):
        for left in range(0, columns, panel_columns):
            # The outermost pixels of a panel start no peak: half of it would be missing.
            for row in range(top + 1, top + panel_rows - 1):
                for column in range(left + 1, left + panel_columns - 1):
                    if not high[rings[row, column]] < pixels[row, column]:
                        continue
                    if taken[row, column] or pixels[row, column] == np.inf:
                        continue
                    taken[row, column] = 1
                    members[kept, 0] = row
                    members[kept, 1] = column
                    end = kept + 1
                    at = kept
                    total = np.float64(0)
                    while at < end:
                        r = members[at, 0]
                        c = members[at, 1]
                        total += pixels[r, c] - mean[rings[r, c]]
                        for near_r in range(max(r - 1, top), min(r + 2, top + panel_rows)):
                            for near_c in range(max(c - 1, left), min(c + 2, left + panel_columns)):
                                if taken[near_r, near_c]:
                                    continue
                                value = pixels[near_r, near_c]
                                if high[rings[near_r, near_c]] < value and value < np.inf:
                                    taken[near_r, near_c] = 1
                                    members[end, 0] = near_r
                                    members[end, 1] = near_c
                                    end += 1
                        at += 1
                    size = end - kept
                    if size < min_pixels or size > max_pixels or not total > 0:
                        continue
                    if found == len(extents) - 1:
                        return found
                    found += 1
                    kept = end
                    extents[found] = kept
    return found


def _measure_peaks(
    pixels: Pixels,
    rings: Integers,
    high: Doubles,
    mean: Doubles,
    panel: Any,
    reach: Any,
    taken: Bytes,
    members: Integers,
    extents: Integers,
    found: Any,
    results: Doubles,
) -> None:
    panel_rows, panel_columns = panel
    for peak in range(found):
        first, end = extents[peak], extents[peak + 1]
        weight = np.float64(0)
        row_sum = np.float64(0)
        column_sum = np.float64(0)
        for i in range(first, end):
            row, column = members[i, 0], members[i, 1]
            above = pixels[row, column] - mean[rings[row, column]]
            weight += above
            row_sum += above * row
            column_sum += above * column
        middle_row = int(np.rint(row_sum / weight))
        middle_column = int(np.rint(column_sum / weight))
        top = members[first, 0] // panel_rows * panel_rows
        left = members[first, 1] // panel_columns * panel_columns
        count = 0
        total = np.float64(0)
        square = np.float64(0)
        brightest = -np.inf
        for row in range(
            max(middle_row - reach, top), min(middle_row + reach + 1, top + panel_rows)
        ):
            for column in range(
                max(middle_column - reach, left),
                min(middle_column + reach + 1, left + panel_columns),
            ):
                down, across = row - middle_row, column - middle_column
                value = np.float64(pixels[row, column])
                if down * down + across * across > reach * reach or taken[row, column]:
                    continue
                if value <= high[rings[row, column]]:
                    count += 1
                    total += value
                    square += value * value
                    brightest = max(brightest, value)
        if count:
            background = total / count
            sigma = np.sqrt(max(square / count - background * background, 0.0))
        else:
            background = mean[rings[middle_row, middle_column]]
            sigma = np.float64(0)
            brightest = background
        intensity = np.float64(0)
        maximum = -np.inf
        row_sum = np.float64(0)
        column_sum = np.float64(0)
        for i in range(first, end):
            row, column = members[i, 0], members[i, 1]
            above = pixels[row, column] - background
            intensity += above
            row_sum += above * row
            column_sum += above * column
            maximum = max(maximum, above)
        results[peak, 0] = column_sum
        results[peak, 1] = row_sum
        results[peak, 2] = intensity
        results[peak, 3] = sigma
        results[peak, 4] = maximum
        results[peak, 5] = brightest - background


ring_sums = MachineCode(_ring_sums)
"""Add pixels between the limits of their ring, these included, to sums, squares and counts.

pixels, rings: of the same number; low, high, sums, squares, counts: one element for each ring.
"""

grow_peaks = MachineCode(_grow_peaks)
"""Find touching pixels above the limit of their ring, panel by panel; return how many peaks.

pixels, rings: (rows, columns); high, mean: one element for each ring; panel: its rows and columns;
limits: fewest and most pixels; taken: zeros (rows, columns), marked where a pixel is in a group;
members: room for (row, column) of every pixel of the frame; extents: peak i has the members
extents[i] to extents[i + 1], room for one more than the peaks that are looked for.
"""

measure_peaks = MachineCode(_measure_peaks)
"""Measure each peak above the pixels around it.

As `grow_peaks`; reach: radius of the surroundings in pixels; results: (peaks, 6), to be filled with
the sums of column and row weighted by height, the sum, sigma of the surroundings, the greatest
height, and that of the surroundings.
"""
