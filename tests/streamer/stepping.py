"""Single steps, made from what a person writes, and events to apply them to."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lclstream.core.models import parse
from lclstream.streamer.batching import Batch, Batcher, new_batch
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.config.known import Known
from lclstream.streamer.config.registry import StepModel, implementation_of
from lclstream.streamer.config.steps import ValueStep
from lclstream.streamer.events import Event, Value
from lclstream.streamer.steps import Step, Steps
from lclstream.streamer.values import Ragged, Reading, Values

Document = dict[str, Any]


class NoReadings:
    """The readings of an event whose values are there already."""

    def read(self, name: str, field: str) -> Value | None:
        raise AssertionError(f"nobody reads {name}.{field}")


def event(index: int = 0) -> Event:
    return Event(
        timestamp=1 << 62 | index, index=index, run=1, experiment="tst", readings=NoReadings()
    )


def config_of(kind: str, **options: Any) -> ValueStep:
    model = parse(StepModel.choices()[kind], {"type": kind, **options}, "step")
    assert isinstance(model, ValueStep)
    return model


def step_of(kind: str, **options: Any) -> Step:
    model = config_of(kind, **options)
    return implementation_of(model, Step)(model, parameters())  # type: ignore[type-abstract]


def applied(step: Step, values: Values, index: int = 0) -> Values:
    """Return what becomes of the values of one event that is kept."""
    after = step.apply(event(index), read_only(values))
    assert after is not None
    return after


def array(reading: Reading | None) -> np.ndarray[Any, Any]:
    assert isinstance(reading, np.ndarray)
    return reading


def ragged(reading: Reading | None) -> np.ndarray[Any, Any]:
    assert isinstance(reading, Ragged)
    return reading.array


def read_only(values: Values) -> Values:
    """Return the values in memory that nobody can change, as sources may give them."""
    return {name: None if value is None else _locked(value) for name, value in values.items()}


def _locked(value: Reading) -> Reading:
    if isinstance(value, Ragged):
        return Ragged(array(_locked(value.array)))
    locked = value.view()
    locked.flags.writeable = False
    return locked


def known(values: Values) -> dict[str, Known]:
    """Return all that can be known about values."""
    return {name: _known(value) for name, value in values.items() if value is not None}


def _known(value: Reading) -> Known:
    if isinstance(value, Ragged):
        return Known(value.array.dtype.name, value.array.shape[1:], is_ragged=True)
    return Known(value.dtype.name, value.shape, is_ragged=False)


def parameters(*steps: Document, **sources: Document) -> Parameters:
    """Return a configuration with steps.

    Args:
        steps: documents of steps.
        sources: documents of data sources; without any, there is one.
    """
    return parse_parameters(document(*steps, **sources))


def document(*steps: Document, **sources: Document) -> Document:
    return {
        "event_source": {"type": "InternalEventSource", "number_of_events_to_generate": 4},
        "data_sources": sources or {"x": {"type": "FloatValue", "value": 1.0}},
        "processing_pipeline": {
            "type": "ProcessingPipeline", "batch_size": 2, "steps": list(steps),
        },
        "data_serializer": {"type": "HDF5BinarySerializer"},
    }  # fmt: skip


def random(*shape: int, dtype: str = "uint16") -> Document:
    """Return the document of a data source of a known form."""
    return {
        "type": "GenericRandomNumpyArray", "array_shape": list(shape), "array_dtype": dtype,
    }  # fmt: skip


def frame(*shape: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.normal(10, 3, shape).astype(dtype)
    return generator.integers(0, 200, shape).astype(dtype)


def waveform(
    edges: Mapping[float, float], *, size: int = 4096, noise: float = 4.0, seed: int = 1
) -> np.ndarray[Any, Any]:
    """Return a digitiser's waveform with Gaussian pulses.

    Args:
        edges: time -> amplitude, in samples and counts.
        size: samples.
        noise: sigma, in counts.
        seed: of the noise.
    """
    signal = 2048 + np.random.default_rng(seed).normal(0, noise, size)
    time = np.arange(size)
    for middle, amplitude in edges.items():
        signal += amplitude * np.exp(-0.5 * ((time - middle) / 2.5) ** 2)
    return signal.astype(np.uint16)


def examples() -> Iterator[tuple[Document, Values]]:
    """Yield every kind of step, with values that it takes."""
    image, stack = frame(40, 60), frame(4, 40, 60, seed=1)
    mask = {"value": "mask"}
    frames: Values = {"a": image, "s": stack, "n": np.array(7), "mask": frame(40, 60) % 7}
    centre = {"center": [20.0, 30.0]}
    for kind, options in (
        ("SelectValues", {"keep": ["s", "n"]}),
        ("DropValues", {"drop": "s"}),
        ("RenameValues", {"names": {"a": "b", "s": "a"}}),
        ("RequireValues", {"inputs": ["a"]}),
        ("SelectEvents", {"input": "n", "minimum": 1}),
        ("Prescale", {"keep_every": 1}),
        ("Crop", {"inputs": ["a", "s"], "rows": [3, 9], "columns": [0, 60]}),
        ("Bin", {"inputs": ["a"], "outputs": "b", "rows": 2, "columns": 3}),
        ("Bin", {"inputs": "a", "rows": 4, "method": "mean", "mask": mask, "empty": -1}),
        ("MaskPixels", {"inputs": "a", "mask": mask, "fill": 3}),
        ("Threshold", {"inputs": ["a", "s"], "minimum": 50}),
        ("ConvertType", {"inputs": ["a", "n"], "dtype": "float32", "scale": 0.1}),
        ("PhotonCounts", {"inputs": "s", "outputs": "photons", "gain": 25}),
        ("CommonMode", {"inputs": ["s"], "panel_shape": [20, 30]}),
        ("SelectPanels", {"inputs": "s", "panels": [3, 1]}),
        ("SplitPanels", {"inputs": ["a", "s"], "panel_shape": [20, 30]}),
        ("StackValues", {"inputs": ["a", "mask"], "output": "both"}),
        ("PeakFinder8", {"input": "a", "geometry": centre, "mask": mask}),
        ("RadialProfile", {"input": "a", "geometry": centre, "maximum": 30, "bins": 10}),
        ("PeaknetPreprocessing", {"target_height": 50, "target_width": 70, "stacks": "pad",
                                  "original_shape": True, "images": ["a", "s"]}),
        ("PeaknetPreprocessing", {"target_height": 50, "target_width": 60, "num_channels": 3}),
    ):  # fmt: skip
        yield {"type": kind, **options}, frames
    trace = waveform({500: 600, 1200.3: 300})
    windows = applied(step_of("WaveformWindows", inputs="h", threshold=2200), {"h": trace})
    yield {"type": "WaveformBaseline", "inputs": "h"}, {"h": trace}
    yield {"type": "WaveformWindows", "inputs": "h", "threshold": 2200}, {"h": trace}
    yield {"type": "WindowArrivalTimes", "inputs": "h", "threshold": -100}, windows
    yield (
        {"type": "WaveformArrivalTimes", "inputs": "h", "relative_threshold": 0.02},
        {"h": trace.astype(np.float32) - 2048, "x": image},
    )
    yield {"type": "SpectrumCentroid", "inputs": "h", "outputs": "p"}, {"h": trace}


def batches(configuration: Parameters, events: list[Values]) -> list[Batch]:
    """Return the batches of some events behind the steps of a configuration."""
    steps = Steps(configuration)
    size = configuration.processing_pipeline.batch_size
    batcher = Batcher(configuration.labels, size, with_masks=True, make=new_batch)
    found: list[Batch] = []
    for index, values in enumerate(events):
        after = steps.apply(event(index), read_only(values))
        if after is not None:
            found += batcher.add(event(index), after)
    return found + list(batcher.finish())
