"""Finds the centroid of the peak in spectra."""

import numpy as np

from lclstream.streamer.config import Parameters
from lclstream.streamer.config.waveform_steps import SpectrumCentroidConfig, centroid_labels
from lclstream.streamer.events import Event
from lclstream.streamer.steps.mapping import Numbers, array_of, misfit
from lclstream.streamer.values import Values


class SpectrumCentroid:
    """Finds centroid and sum of the peak in each spectrum."""

    def __init__(self, config: SpectrumCentroidConfig, parameters: Parameters) -> None:
        del parameters
        self._config = config

    def apply(self, event: Event, values: Values) -> Values:
        """Return the values with the results; those of a missing spectrum are missing.

        Raises:
            InvalidConfigError: something is not a spectrum, or is too short.
        """
        del event
        after = dict(values)
        for label, output in self._config.pairs:
            names = centroid_labels(output)
            value = values.get(label)
            if value is None:
                after |= dict.fromkeys(names)
                continue
            spectrum = array_of(self._config, label, value)
            after |= zip(names, self._results(label, spectrum), strict=True)
        return after

    def _results(self, label: str, spectrum: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        config = self._config
        least = max(config.baseline_start + 1, config.window[1])
        if spectrum.ndim != 1 or len(spectrum) < least:
            text = f"has shape {spectrum.shape}, not one axis of at least {least} samples"
            raise misfit(config, label, text)
        kind = np.float64 if spectrum.dtype.kind == "f" else np.int32
        baseline = np.trunc(np.mean(spectrum[config.baseline_start :], dtype=np.float64))
        corrected: Numbers = spectrum.astype(kind)
        corrected -= kind(baseline)
        centroid, total = 0.0, 0.0
        if corrected.max() >= config.threshold:
            centroid, total = self._peak(corrected)
        return np.array(centroid), np.array(total), corrected

    def _peak(self, corrected: Numbers) -> tuple[float, float]:
        """Return centroid and sum of the part of the window that is the peak."""
        config = self._config
        window = corrected[slice(*config.window)].astype(np.float64)
        cumulative = np.cumsum(window)
        whole = float(cumulative[-1])
        if whole <= 0:
            return 0.0, 0.0
        fraction = cumulative / whole
        index = np.flatnonzero((fraction > config.low) & (fraction < config.high))
        total = (config.high - config.low) * whole
        return float((window[index] * index).sum() / total), total
