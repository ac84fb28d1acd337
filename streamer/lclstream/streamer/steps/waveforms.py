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
        dtype = waveform.dtype if waveform.dtype.kind == "f" else np.dtype(np.int64)
        out = waveform.astype(dtype)
        for converter in range(config.converters):
            first = waveform[..., converter : config.samples + converter : config.converters]
            mean = np.trunc(first.mean(axis=-1, dtype=np.float64, keepdims=True))
            out[..., converter :: config.converters] -= mean.astype(dtype)
        if dtype.kind == "f":
            return out
        info = np.iinfo(config.dtype)
        if out.size and not (info.min <= out.min() and out.max() <= info.max):
            raise self.misfit(
                label, f"holds {out.min()} to {out.max()}, too far for {config.dtype}"
            )
        return out.astype(config.dtype)


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
