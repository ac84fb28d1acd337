"""The logic vector of a waveform: negative on rising flanks, zero at crests."""

from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Complex: TypeAlias = npt.NDArray[np.complex64] | npt.NDArray[np.complex128]


def logic_vector(waveform: Floats, roll_off: int, inflate: int) -> Floats:
    """Return -(y * dy/dt) of the filtered and interpolated waveform.

    In words: the waveform is mirrored at its end and transformed. The 2 * roll_off bins around
    the middle of the spectrum are multiplied by 0.5 * (1 + cos(2 pi k / roll_off)), k counted
    from the first of them. Zeros are put into the middle, so that the transform back is
    `inflate` times finer. The derivative is made there, too.

    Of both transforms back only the real part counts, which the Hermitian part of the spectrum
    makes: half of the spectrum tells it. Its last bin is 0 for a mirrored waveform.

    Args:
        waveform: without baseline, shape (samples,).
        roll_off: half the number of bins that the filter shapes, at most the samples.
        inflate: how much finer the result is.

    Returns:
        Shape (samples * inflate,).
    """
    size = len(waveform)
    spectrum = np.fft.rfft(np.concatenate((waveform, waveform[::-1])))[:size]
    signal, slope = _factors(size, roll_off, spectrum.dtype.str)
    length, wanted = 2 * size * inflate, slice(size * inflate)
    logic = np.fft.irfft(spectrum * signal, length)[wanted]
    logic *= np.fft.irfft(spectrum * slope, length)[wanted]
    return np.negative(logic, out=logic)


@lru_cache(maxsize=64)
def _factors(size: int, roll_off: int, dtype: str) -> tuple[Floats, Complex]:
    """Return what the bins of the spectrum are multiplied by, for the signal and for its slope."""
    weights = np.ones(size)
    k = np.arange(roll_off)
    weights[size - roll_off :] = 0.5 * (1 + np.cos(2 * np.pi * k / roll_off))
    # Bin k counts k / size on one side and (k - 1) / size on the other.
    rate = np.maximum(np.arange(size) - 0.5, 0) / size
    kind = np.dtype(dtype)
    signal: Floats = weights * size
    slope: Complex = 1j * rate * weights
    if kind == np.complex64:
        return signal.astype(np.float32), slope.astype(np.complex64)
    return signal, slope
