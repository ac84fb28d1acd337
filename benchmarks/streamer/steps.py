"""What the steps of the processing cost, beside plain numpy and direct loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.buffer.rows import Goal, Row, row
from benchmarks.streamer.options import Options
from benchmarks.streamer.turns import Case, costs

from lclstream.core.models import parse
from lclstream.streamer.batching import Batcher, new_batch
from lclstream.streamer.config import SimulatedDetectorEventSourceConfig, parse_parameters
from lclstream.streamer.config.registry import StepModel, implementation_of
from lclstream.streamer.events import Event
from lclstream.streamer.sources.diffraction import Panels
from lclstream.streamer.sources.simulated import expected_event
from lclstream.streamer.steps import Step
from lclstream.streamer.values import Values

Numbers = npt.NDArray[Any]

NOT_DEARER = Goal("ratio", "<=", 1.0)

TARGET = 1920
BATCH = 16
CHANNELS, SAMPLES = 16, 4096
ROLL_OFF, INFLATE, EXPAND = 64, 2, 4
# Beginning and end of the logic vector that are not looked at.
MARGIN = 10


def rows(options: Options) -> list[Row]:
    """Return what each step costs, and what replaces it."""
    return [*_peaknet(options), *_hit_finder(options), *_arrival_times(options)]


def _row(
    title: str,
    ours: Callable[[], object],
    plain: Callable[[], object],
    units: int,
    options: Options,
) -> Row:
    cases = {"ours": Case(work=ours, units=units), "plain": Case(work=plain, units=units)}
    found = {name: [1e3 * each for each in spent] for name, spent in costs(cases, options).items()}
    return row(
        title, "ms CPU/event", found["ours"], baselines=found["plain"], peer="plain program",
        goal=NOT_DEARER,
    )  # fmt: skip


def _step(kind: str, **options: Any) -> Step:
    model = parse(StepModel.choices()[kind], {"type": kind, **options}, kind)
    assert isinstance(model, StepModel)  # noqa: S101
    source = {"type": "InternalEventSource", "number_of_events_to_generate": 1}
    parameters = parse_parameters(
        {
            "event_source": source,
            "data_sources": {"x": {"type": "FloatValue", "value": 0}},
            "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
            "data_serializer": {"type": "HDF5BinarySerializer"},
        }
    )
    return implementation_of(model, Step)(model, parameters)  # type: ignore[type-abstract]


def _event(index: int = 0) -> Event:
    return expected_event(SimulatedDetectorEventSourceConfig(shape=(16, 16)), index)


# PeakNet


def _peaknet(options: Options) -> list[Row]:
    generator = np.random.default_rng(1)
    images = [generator.normal(0, 1, (512, 1024)).astype(np.float32) for _ in range(4)]
    found = []
    for title, more in (("", {}), (", normalised", {"apply_normalization": True})):
        step = _step("PeaknetPreprocessing", target_height=TARGET, target_width=TARGET, **more)
        made: list[Any] = []

        def taken(form: Any, capacity: int, made: list[Any] = made) -> Any:
            # One batch, filled again and again, as when messages are sent at once.
            made[:] = made or [new_batch(form, capacity)]
            made[0].count = 0
            return made[0]

        batcher = Batcher(("x",), BATCH, with_masks=False, make=taken)

        def ours(step: Step = step, batcher: Batcher = batcher) -> None:
            for index in range(BATCH):
                event = _EVENTS[index]
                after = step.apply(event, {"x": images[index % 4]})
                list(batcher.add(event, after or {}))

        def plain(normalised: bool = bool(more)) -> Numbers:
            down, across = (TARGET - 512) // 2, (TARGET - 1024) // 2
            padded = [
                np.pad(images[index % 4], ((down, down), (across, across)))
                for index in range(BATCH)
            ]
            if normalised:
                padded = [(x - x.mean()) / np.sqrt(x.var() + 1e-5) for x in padded]
            return np.stack(padded)[:, None]

        title = f"PeakNet 512x1024 -> {TARGET}x{TARGET} float32, batch {BATCH}{title}"
        found.append(_row(title, ours, plain, BATCH, options))
    return found


_EVENTS = [_event(index) for index in range(BATCH)]


# Hit finding


def _hit_finder(options: Options) -> list[Row]:
    config = SimulatedDetectorEventSourceConfig(
        events=8, shape=(512, 1024), panels=8, hit_rate=1.0, distance_mm=150.0
    )
    panels = Panels(config.panels, config.shape)
    height, width = panels.image_shape
    geometry = {
        "center": [height / 2, width / 2],
        "panel_corners": [panels.corner(panel) for panel in range(config.panels)],
    }
    events = [expected_event(config, index) for index in range(4)]
    frames = [np.asarray(event.read("jungfrau", "raw.calib")) for event in events]
    rings = np.rint(panels.radius()).astype(np.intp)
    found = []
    for title, more in (("all pixels", {}), ("300 pixels of a ring", {"pixels_per_ring": 300})):
        step = _step("PeakFinder8", input="x", geometry=geometry, **more)

        def ours(step: Step = step) -> None:
            for event, frame in zip(events, frames, strict=True):
                step.apply(event, {"x": frame})

        def plain() -> None:
            for frame in frames:
                _plain_statistics(frame.ravel(), rings.ravel())

        title = f"peak finder, 8 x 512x1024 float32, {title} (plain: statistics of rings alone)"
        found.append(_row(title, ours, plain, len(frames), options))
    return found


def _plain_statistics(pixels: Numbers, rings: Numbers, snr: float = 5.0) -> Numbers:
    """Return the limit of high pixels of each ring, by numpy."""
    count = int(rings.max()) + 1
    high, low = np.full(count, np.inf), np.full(count, -np.inf)
    for _ in range(5):
        counted = (pixels > low[rings]) & (pixels < high[rings])
        chosen, values = rings[counted], pixels[counted].astype(np.float64)
        number = np.maximum(np.bincount(chosen, minlength=count), 1)
        mean = np.bincount(chosen, values, count) / number
        square = np.bincount(chosen, values * values, count) / number
        sigma = np.sqrt(np.maximum(square - mean * mean, 0))
        high, low = mean + snr * sigma, mean - snr * sigma
    return high


# Arrival times


def _arrival_times(options: Options) -> list[Row]:
    traces = [_waveform(seed) for seed in range(CHANNELS)]
    names = [f"hsd_{number}" for number in range(CHANNELS)]
    values: Values = dict(zip(names, traces, strict=True))
    baseline = _step("WaveformBaseline", inputs=names, dtype="int16")
    windows = _step("WaveformWindows", inputs=names, threshold=2200)
    crests = _step("WindowArrivalTimes", inputs=names, threshold=-100)
    whole = _step(
        "WaveformArrivalTimes", inputs=names, relative_threshold=0.02, roll_off=ROLL_OFF,
        inflate=INFLATE, expand=EXPAND,
    )  # fmt: skip
    single = _step(
        "WaveformArrivalTimes", inputs=names, relative_threshold=0.02, roll_off=ROLL_OFF,
        inflate=INFLATE, expand=EXPAND, precision="float32",
    )  # fmt: skip
    subtracted = baseline.apply(_EVENTS[0], values) or {}
    kept = windows.apply(_EVENTS[0], values) or {}
    plain = [np.asarray(each) for each in subtracted.values()]
    what = f"{CHANNELS} x {SAMPLES} samples"

    def applied(step: Step, given: Values) -> Callable[[], object]:
        return lambda: step.apply(_EVENTS[0], given)

    def each(function: Callable[[Numbers], object], given: list[Numbers]) -> Callable[[], object]:
        return lambda: [function(trace) for trace in given]

    cases = {
        "baseline": (applied(baseline, values), each(_baseline, traces)),
        "windows": (applied(windows, values), each(_windows, traces)),
        "times in windows (plain: whole waveforms)": (applied(crests, kept), each(_crests, traces)),
        "Fourier times": (applied(whole, subtracted), each(_logic, plain)),
        "Fourier times in float32": (applied(single, subtracted), each(_logic, plain)),
    }
    return [
        _row(f"TMO {title}, {what}", ours, theirs, 1, options)
        for title, (ours, theirs) in cases.items()
    ]


def _waveform(seed: int) -> Numbers:
    generator, time = np.random.default_rng(seed), np.arange(SAMPLES)
    signal = 2048 + generator.normal(0, 4, SAMPLES)
    for middle in generator.uniform(100, SAMPLES - 100, 5):
        signal += generator.uniform(300, 900) * np.exp(-0.5 * ((time - middle) / 2.5) ** 2)
    return signal.astype(np.uint16)


def _baseline(trace: Numbers) -> Numbers:
    signal = trace.astype(np.int16)
    for converter in range(4):
        signal[converter::4] -= int(np.mean(signal[converter : 64 + converter : 4]))
    return signal


def _windows(trace: Numbers) -> list[Numbers]:
    """Return the samples around excursions, found sample by sample."""
    kept: list[list[int]] = []
    for index, value in enumerate(trace.tolist()):
        if value > 2200:
            start, end = max(index - 16, 0), min(index + 17, len(trace))
            if kept and start <= kept[-1][1]:
                kept[-1][1] = end
            else:
                kept.append([start, end])
    return [trace[start:end].copy() for start, end in kept]


def _crests(trace: Numbers) -> list[tuple[int, int]]:
    samples = trace.astype(np.int32)
    difference = (samples[:-2] - samples[2:]).tolist()
    return [(stop, slope) for stop, slope in _scan(difference, -100, 1, len(difference))]


def _logic(signal: Numbers) -> list[tuple[int, float]]:
    """Return the crossings of the logic vector, made in full and scanned element by element."""
    size = len(signal)
    spectrum = np.fft.fft(np.concatenate([signal, signal[::-1]]).astype(np.float64))
    k = np.arange(2 * ROLL_OFF)
    spectrum[size - ROLL_OFF : size + ROLL_OFF] *= 0.5 * (1 + np.cos(2 * np.pi * k / ROLL_OFF))
    zeros = np.zeros(2 * size * (INFLATE - 1))
    spectrum = np.concatenate([spectrum[:size], zeros, spectrum[size:]])
    y = np.fft.ifft(spectrum * size).real[: INFLATE * size]
    rate = np.arange(size) / size
    spectrum[:size] *= 1j * rate
    spectrum[-size:] *= -1j * (rate[::-1])
    logic = -y * np.fft.ifft(spectrum).real[: INFLATE * size]
    threshold = float(logic.min()) * 0.02
    return list(_scan(logic.tolist(), threshold, MARGIN, len(logic) - MARGIN))


def _scan(d: list[Any], threshold: float, first: int, end: int) -> list[tuple[int, Any]]:
    found, i = [], first
    while i < end:
        while i < end and d[i] > threshold:
            i += 1
        while i < end and d[i] < 0:
            i += 1
        if i < end:
            found.append((i, d[i] - d[i - 1]))
        i += 1
    return found
