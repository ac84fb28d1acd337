"""The first two steps of the compression of waveforms: baseline, and windows around excursions."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.streamer.config import Parameters
from lclstream.streamer.config import waveform_steps as configs
from lclstream.streamer.events import Event
from lclstream.streamer.steps.mapping import MappingStep, Numbers, array_of, misfit
from lclstream.streamer.values import Ragged, Reading, Values

Indices: TypeAlias = npt.NDArray[np.int64]
Doubles: TypeAlias = npt.NDArray[np.float64]


class WaveformBaseline(MappingStep[configs.WaveformBaselineConfig]):
    """Subtracts the baseline of each interleaved converter."""

    def changed(self, label: str, value: Reading, values: Values) -> Reading:
        """Return the waveform without baseline.

        Raises:
            InvalidConfigError: it is too short, or does not fit the dtype.
        """
        del values
        config = self.config
        waveform = array_of(config, label, value)
        if waveform.ndim < 1:
            raise self.misfit(label, "is one number, not a waveform")
        for text in config.length_objections(waveform.shape[-1]):
            raise self.misfit(label, text)
        size = waveform.shape[-1]
        baselines = self._baselines(waveform)
        baseline = np.tile(baselines, -(-size // config.converters))[..., :size]
        if waveform.dtype.kind == "f":
            corrected: Numbers = waveform - baseline.astype(waveform.dtype)
            return corrected
        wide = np.int32 if waveform.dtype.itemsize < 4 else np.int64
        return self._narrowed(label, np.subtract(waveform, baseline.astype(wide), dtype=wide))

    def _baselines(self, waveform: Numbers) -> Doubles:
        """Return the mean of the first samples of each converter, shape (..., converters)."""
        converters = self.config.converters
        count = -(-self.config.samples // converters)
        first = waveform[..., : count * converters]
        first = first.reshape(*first.shape[:-1], count, converters)
        means: Doubles = first.mean(axis=-2, dtype=np.float64)
        return np.trunc(means)

    def _narrowed(self, label: str, signal: Numbers) -> Numbers:
        info = np.iinfo(self.config.dtype)
        is_narrower = signal.dtype.itemsize > info.bits // 8
        if is_narrower and signal.size and not info.min <= signal.min() <= signal.max() <= info.max:
            text = f"holds {signal.min()} to {signal.max()}, too far for {self.config.dtype}"
            raise self.misfit(label, text)
        return signal.astype(self.config.dtype, copy=False)


class WaveformWindows:
    """Keeps the samples around excursions."""

    def __init__(self, config: configs.WaveformWindowsConfig, parameters: Parameters) -> None:
        del parameters
        self._config = config
        self._removed = frozenset(config.removes())

    def apply(self, event: Event, values: Values) -> Values:
        """Return the values with the windows; those of a missing waveform are missing.

        Raises:
            InvalidConfigError: something is not a waveform.
        """
        del event
        after = {label: value for label, value in values.items() if label not in self._removed}
        for label, output in self._config.pairs:
            names = configs.window_labels(output)
            value = values.get(label)
            if value is None:
                after |= dict.fromkeys(names)
                continue
            waveform = array_of(self._config, label, value)
            if waveform.ndim != 1:
                raise misfit(self._config, label, f"has shape {waveform.shape}, not one axis")
            starts, lengths = self._windows(waveform)
            samples = waveform[indices(starts, lengths)]
            made = (starts.astype(np.uint32), lengths.astype(np.uint32), samples)
            after |= {name: Ragged(array) for name, array in zip(names, made, strict=True)}
        return after

    def _windows(self, waveform: Numbers) -> tuple[Indices, Indices]:
        """Return first sample and length of each window."""
        config, size = self._config, len(waveform)
        beyond = (
            waveform > config.threshold
            if config.polarity == "positive"
            else waveform < config.threshold
        )
        starts, ends = runs(beyond)
        starts = np.maximum(starts - config.before, 0)
        ends = np.minimum(ends + config.after, size)
        # Starts and ends ascend, so that a window begins where the one before has ended.
        apart = starts[1:] > ends[:-1]
        starts = starts[np.concatenate(([True], apart))] if len(starts) else starts
        ends = ends[np.concatenate((apart, [True]))] if len(ends) else ends
        if config.markers:
            starts = np.concatenate(([0], starts, [size, size]))
            ends = np.concatenate(([min(config.marker_samples, size)], ends, [size, size]))
        return starts, ends - starts


def runs(flags: npt.NDArray[np.bool_]) -> tuple[Indices, Indices]:
    """Return where each run of set flags begins, and where it has ended."""
    # A flag that is not set on either side makes every run begin and end.
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return edges[0::2], edges[1::2]


def indices(starts: Indices, lengths: Indices) -> Indices:
    """Return the samples of all windows, one window after the other."""
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    steps: Indices = np.repeat(starts - before, lengths)
    return np.arange(total) + steps
