"""The three steps of the compression of waveforms, beside loops written from their description."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.stepping import (
    applied,
    array,
    batches,
    event,
    parameters,
    ragged,
    random,
    step_of,
    waveform,
)

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.steps.arrivals import crests, zero_crossings
from lclstream.streamer.steps.fourier import logic_vector
from lclstream.streamer.values import Ragged, Values

Numbers = np.ndarray[Any, Any]

EDGES = {500: 600.0, 1200.3: 300.0, 1215.8: 500.0, 3000: 900.0}
TRUE_TIMES = np.array(list(EDGES))


def without_baseline(trace: Numbers, **options: Any) -> Numbers:
    return array(applied(step_of("WaveformBaseline", inputs="h", **options), {"h": trace})["h"])


# Step 1


def test_baselines_of_the_converters_are_subtracted_as_described() -> None:
    trace = waveform(EDGES)
    for a in range(4):
        trace[a::4] += np.uint16(7 * a)
    wanted = trace.astype(np.int16)
    for a in range(4):
        baseline = int(np.mean(wanted[a : 64 + a : 4]))
        wanted[a::4] -= baseline
    for dtype in ("int16", "int32"):
        found = without_baseline(trace, dtype=dtype)
        assert found.dtype == dtype
        assert np.array_equal(found, wanted)


def test_offsets_of_the_converters_are_gone() -> None:
    trace = waveform({}, noise=4.0)
    offsets = np.array([0, 40, -25, 300])
    found = without_baseline((trace + np.resize(offsets, trace.size)).astype(np.uint16))
    means = [found[a::4].mean() for a in range(4)]
    # The noise of a mean of 16 samples, and the fraction that is left out.
    assert max(means) - min(means) < 4 * 4 / 16**0.5 + 1


def test_samples_above_32767_do_not_wrap() -> None:
    trace = np.full(256, 60_000, np.uint16)
    trace[100] = 65_535
    assert without_baseline(trace)[100] == 5535
    trace[:100] = 100
    assert without_baseline(trace)[200] == 59_900
    with pytest.raises(InvalidConfigError, match="too far for int16"):
        without_baseline(trace, dtype="int16")


def test_floats_stay_floats_and_several_channels_are_treated_at_once() -> None:
    traces = np.stack([waveform(EDGES, seed=i) for i in range(3)]).astype(np.float32)
    found = without_baseline(traces)
    assert found.dtype == np.float32
    assert np.array_equal(found[1], without_baseline(traces[1]))


# Step 2


def windows(trace: Numbers, **options: Any) -> tuple[Numbers, Numbers, Numbers]:
    after = applied(step_of("WaveformWindows", inputs="h", **options), {"h": trace})
    assert list(after) == ["h_starts", "h_lengths", "h_samples"]
    starts, lengths, samples = (ragged(value) for value in after.values())
    assert (starts.dtype, lengths.dtype, samples.dtype) == (np.uint32, np.uint32, trace.dtype)
    return starts, lengths, samples


@given(
    flags=st.lists(st.booleans(), max_size=60),
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    negative=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_windows_hold_every_excursion_and_its_surroundings(
    flags: list[bool], before: int, after: int, negative: bool
) -> None:
    trace = np.where(np.array(flags, bool), 20, 10).astype(np.int32) * (-1 if negative else 1)
    trace += np.arange(len(trace), dtype=np.int32) % 3
    polarity = "negative" if negative else "positive"
    threshold = -15 if negative else 15
    starts, lengths, samples = windows(
        trace, threshold=threshold, polarity=polarity, before=before, after=after
    )
    kept = np.zeros(len(trace), bool)
    for index, flag in enumerate(flags):
        if flag:
            kept[max(index - before, 0) : index + after + 1] = True
    assert np.array_equal(samples, trace[kept])
    found = np.zeros(len(trace), bool)
    for start, length in zip(starts, lengths, strict=True):
        assert length
        assert not found[start : start + length].any()
        found[start : start + length] = True
    assert np.array_equal(found, kept)
    # Windows that touch are one.
    assert (starts[1:].astype(int) > (starts + lengths)[:-1].astype(int)).all()


def test_markers_are_put_around_the_windows_as_the_digitiser_does() -> None:
    trace = waveform(EDGES)
    starts, lengths, samples = windows(trace, threshold=2200)
    marked = windows(trace, threshold=2200, markers=True)
    assert marked[0].tolist() == [0, *starts.tolist(), 4096, 4096]
    assert marked[1].tolist() == [64, *lengths.tolist(), 0, 0]
    assert np.array_equal(marked[2], np.concatenate([trace[:64], samples]))
    assert [each.tolist() for each in windows(trace[:50], threshold=9999, markers=True)[:2]] == [
        [0, 50, 50], [50, 0, 0],
    ]  # fmt: skip


# Step 3, by the difference of samples


def scanned_crests(s: list[int], threshold: float, distance: int) -> list[tuple[int, int]]:
    """Return the crests of one window, found sample by sample."""
    res = [s[i] - s[i + distance] for i in range(len(s) - distance)]
    found, i = [], 1
    while i < len(res):
        while i < len(res) and res[i] > threshold:
            i += 1
        while i < len(res) and res[i] < 0:
            i += 1
        if i >= len(res):
            break
        stop = i
        if res[stop] > -res[stop - 1]:
            stop -= 1
        i += 1
        found.append((stop, res[stop] - res[stop - 1]))
    return found


@given(
    pieces=st.lists(st.lists(st.integers(0, 40), max_size=25), max_size=5),
    threshold=st.integers(-30, -1),
    distance=st.integers(1, 4),
    wide=st.sampled_from([np.uint8, np.int16, np.uint16, np.int64, np.float32]),
)
@settings(deadline=None, max_examples=200)
def test_crests_are_those_of_a_scan_of_each_window(
    pieces: list[list[int]], threshold: int, distance: int, wide: Any
) -> None:
    lengths = np.array([len(each) for each in pieces], np.uint32)
    starts = np.arange(len(pieces), dtype=np.uint32) * 100
    samples = np.array([n for each in pieces for n in each], wide)
    values: Values = {
        "h_starts": Ragged(starts), "h_lengths": Ragged(lengths), "h_samples": Ragged(samples),
    }  # fmt: skip
    step = step_of("WindowArrivalTimes", inputs="h", threshold=threshold, distance=distance)
    after = applied(step, values)
    wanted = [
        (100 * number + time, slope)
        for number, piece in enumerate(pieces)
        for time, slope in scanned_crests(piece, threshold, distance)
    ]
    assert ragged(after["h_tofs"]).tolist() == [time for time, _ in wanted]
    assert ragged(after["h_slopes"]).tolist() == [slope for _, slope in wanted]
    assert array(after["h_nedges"]) == len(wanted)


def test_crests_of_the_known_pulses() -> None:
    for seed in range(20):
        trace = {"h": waveform(EDGES, seed=seed)}
        step = step_of("WindowArrivalTimes", inputs="h", source="waveform", threshold=-100)
        after = applied(step, trace)
        assert ragged(after["h_tofs"]).tolist() == [499, 1199, 1215, 2999]
        assert ragged(after["h_tofs"]).dtype == np.uint32
        assert ragged(after["h_slopes"]).dtype == np.int32
        none = applied(step_of("WindowArrivalTimes", inputs="h", source="waveform"), trace)
        assert array(none["h_nedges"]) == 0


@pytest.mark.parametrize("markers", [False, True])
def test_windows_lose_no_edge(markers: bool) -> None:
    found = parameters(
        {"type": "WaveformWindows", "inputs": "h", "threshold": 2200, "keep_inputs": True,
         "outputs": "w", "markers": markers},
        {"type": "WindowArrivalTimes", "inputs": "w", "threshold": -100, "markers": markers},
        {"type": "WindowArrivalTimes", "inputs": "h", "threshold": -100, "source": "waveform"},
        h=random(4096),
    )  # fmt: skip
    assert found.labels == ("w_tofs", "w_slopes", "w_nedges", "h_tofs", "h_slopes", "h_nedges")
    traces = [waveform(EDGES, seed=seed) for seed in range(10)]
    for batch in batches(found, [{"h": each} for each in traces]):
        for kind in ("tofs", "slopes"):
            mine, whole = batch.ragged[f"w_{kind}"], batch.ragged[f"h_{kind}"]
            assert np.array_equal(mine.values(batch.count), whole.values(batch.count))
        assert batch.arrays["h_nedges"].tolist() == [4] * batch.count


def test_every_channel_can_have_a_threshold() -> None:
    trace = waveform({500: 60, 900: 600})
    step = step_of(
        "WindowArrivalTimes",
        inputs=["a", "b"],
        outputs=["c", "d"],
        source="waveform",
        threshold=-100,
        thresholds={"b": -30},
        keep_inputs=True,
    )
    after = applied(step, {"a": trace, "b": trace})
    assert [int(array(after[f"{name}_nedges"])) for name in "cd"] == [1, 2]
    assert {"a", "b"} <= set(after)


def test_windows_that_do_not_fit_together_are_refused() -> None:
    step = step_of("WindowArrivalTimes", inputs="h")
    values: Values = {
        "h_starts": Ragged(np.zeros(2, np.uint32)),
        "h_lengths": Ragged(np.full(2, 5, np.uint32)),
        "h_samples": Ragged(np.zeros(9, np.int16)),
    }
    with pytest.raises(InvalidConfigError, match="2 starts, 2 lengths that make 10 samples, and 9"):
        step.apply(event(), values)


def test_where_each_event_begins() -> None:
    """Upstream subtracted the number of the first event's edges from all of them."""
    found = parameters(
        {"type": "WindowArrivalTimes", "inputs": "h", "threshold": -100, "source": "waveform"},
        h=random(4096),
    )
    found = found.model_copy(
        update={
            "processing_pipeline": found.processing_pipeline.model_copy(update={"batch_size": 9})
        }
    )
    times = [300, 900, 1500]
    events: list[Values] = [
        {"h": waveform(dict.fromkeys(times[:count], 500.0))} for count in (2, 3, 1, 0, 2)
    ]
    (batch,) = batches(found, events)
    offsets = batch.ragged["h_tofs"].offsets[:6].astype(int)
    nedges = batch.arrays["h_nedges"][:5].astype(int)
    assert nedges.tolist() == [2, 3, 1, 0, 2]
    assert offsets.tolist() == [0, 2, 5, 6, 6, 8]
    with_edges = nedges > 0
    assert offsets[:-1][with_edges].tolist() == [0, 2, 5, 6]
    assert np.array_equal(offsets[:-1], np.cumsum(nedges) - nedges)


# Step 3, by the logic vector


def described_logic(waveform: Numbers, n: int, f: int) -> Numbers:
    """Return the logic vector, made in full as it is described."""
    size = len(waveform)
    spectrum = np.fft.fft(np.concatenate([waveform, waveform[::-1]]).astype(float))
    k = np.arange(2 * n)
    spectrum[size - n : size + n] *= 0.5 * (1 + np.cos(2 * np.pi * k / n))
    zeros = np.zeros(2 * size * (f - 1))
    spectrum = np.concatenate([spectrum[:size], zeros, spectrum[size:]])
    y = np.fft.ifft(spectrum * size).real[: f * size]
    up = np.arange(size)
    derivative = spectrum.copy()
    derivative[:size] *= 1j * up / size
    derivative[-size:] *= -1j * (size - 1 - up) / size
    return np.asarray(-y * np.fft.ifft(derivative).real[: f * size])


@given(size=st.integers(33, 200), n=st.integers(1, 33), f=st.integers(1, 4), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_logic_vector_is_as_described(size: int, n: int, f: int, seed: int) -> None:
    trace = np.random.default_rng(seed).normal(0, 50, size)
    found, wanted = logic_vector(trace, n, f), described_logic(trace, n, f)
    assert np.abs(found - wanted).max() < 1e-12 * np.abs(wanted).max()


def scanned_zeros(d: list[float], threshold: float) -> list[tuple[float, float]]:
    """Return the crossings that are found element by element."""
    found, i, end = [], 10, len(d) - 10
    while i < end:
        while i < end and d[i] > threshold:
            i += 1
        while i < end and d[i] < 0:
            i += 1
        if i >= end:
            break
        slope = d[i] - d[i - 1]
        found.append((i - d[i] / slope, slope))
        i += 1
    return found


@given(
    d=st.lists(st.floats(-9, 9), max_size=80),
    threshold=st.floats(-8, -0.1),
)
@settings(deadline=None, max_examples=200)
def test_crossings_are_those_of_a_scan(d: list[float], threshold: float) -> None:
    times, slopes = zero_crossings(np.array(d, float), threshold)
    wanted = scanned_zeros(d, threshold)
    assert times.tolist() == [time for time, _ in wanted]
    assert slopes.tolist() == [slope for _, slope in wanted]


def times_of(trace: Numbers, index: int = 0, **options: Any) -> Numbers:
    options = {"relative_threshold": 0.02, **options}
    baseline = without_baseline(trace)
    step = step_of("WaveformArrivalTimes", inputs="h", **options)
    return ragged(applied(step, {"h": baseline}, index)["h_tofs"])


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_pulses_are_found_between_the_samples(precision: str) -> None:
    """A pair 15 samples apart is resolved; for 100 kinds of noise no edge is false or missing."""
    worst = 0.0
    for seed in range(100 if precision == "float64" else 10):
        times = times_of(waveform(EDGES, seed=seed), rounding="none", precision=precision) / 8
        assert len(times) == 4, seed
        worst = max(worst, float(np.abs(times - TRUE_TIMES).max()))
    assert worst < 0.4
    known = times_of(waveform(EDGES), rounding="none", precision=precision) / 8
    np.testing.assert_allclose(known, [500.20, 1200.19, 1215.94, 3000.06], atol=0.01)
    rounded = times_of(waveform(EDGES), precision=precision) / 8
    assert np.abs(rounded - TRUE_TIMES).max() <= 0.25


@pytest.mark.parametrize("noise", [1.0, 8.0, 16.0])
@pytest.mark.parametrize("apart", [12.0, 20.0])
def test_efficiency_and_false_edges(noise: float, apart: float) -> None:
    pulses = {700.0: 500.0, 700.0 + apart: 500.0, 2500.0: 700.0}
    true = np.array(list(pulses))
    found = 0
    false = 0
    for seed in range(20):
        trace = waveform(pulses, noise=noise, seed=seed)
        times = times_of(trace, rounding="none", relative_threshold=0.1) / 8
        distances = np.abs(times[:, None] - true)
        found += int((distances < 1).any(axis=0).sum())
        false += int((distances.min(axis=1) > 2).sum())
    assert found >= 0.95 * 20 * len(true)
    assert false <= (0.02 * 20 * len(true) if noise > 10 else 0)


def test_times_are_rounded_by_chance_that_repeats() -> None:
    trace = waveform(EDGES)
    exact = times_of(trace, rounding="none")
    nearest = times_of(trace, rounding="nearest")
    assert (exact.dtype, nearest.dtype) == (np.float64, np.uint32)
    assert nearest.tolist() == np.rint(exact).tolist()
    rounded = np.stack([times_of(trace, index) for index in range(300)])
    assert rounded.dtype == np.uint32
    assert (np.abs(rounded - exact) < 1).all()
    # One more with a probability equal to the fraction: four sigma of 300 draws.
    assert np.abs(rounded.mean(axis=0) - exact).max() < 4 * 0.5 / 300**0.5
    again = times_of(trace, 7)
    assert np.array_equal(again, rounded[7])
    other = [times_of(trace, index, seed=1).tolist() for index in range(20)]
    assert other != rounded[:20].tolist()


def test_absolute_thresholds_and_thresholds_of_channels() -> None:
    trace = without_baseline(waveform(EDGES))
    logic = logic_vector(trace.astype(float), 64, 2)
    options = {"threshold": float(logic.min()) / 50, "thresholds": {"b": float(logic.min()) * 0.9}}
    step = step_of("WaveformArrivalTimes", inputs=["a", "b"], **options)
    after = applied(step, {"a": trace, "b": trace})
    assert [int(array(after[f"{name}_nedges"])) for name in "ab"] == [4, 1]
    assert ragged(after["a_slopes"]).dtype == np.float64


def test_noise_has_no_edges_where_both_thresholds_hold() -> None:
    empty = without_baseline(waveform({}))
    height, sigma = 100.0, 2.5
    absolute = -0.14 * height**2 * 4096 / (4 * sigma)
    for options, count in (
        ({"relative_threshold": 0.5}, 1),
        ({"relative_threshold": 0.5, "threshold": absolute}, 0),
    ):
        step = step_of("WaveformArrivalTimes", inputs="h", **options)
        assert (array(applied(step, {"h": empty})["h_nedges"]) >= 1) == bool(count)
    # The limit is where the documentation says: pulses above it are found, those below are not.
    step = step_of("WaveformArrivalTimes", inputs="h", threshold=absolute)
    for factor, count in ((0.8, 0), (1.2, 1)):
        pulse = without_baseline(waveform({1000.0: factor * height}, noise=0.5))
        assert array(applied(step, {"h": pulse})["h_nedges"]) == count


def test_waveforms_without_pulses_have_no_edges() -> None:
    flat = np.zeros(256, np.int32)
    after = applied(step_of("WaveformArrivalTimes", inputs="h", threshold=-1), {"h": flat})
    assert array(after["h_nedges"]) == 0
    assert len(ragged(after["h_tofs"])) == 0
    assert crests(np.zeros(2), np.zeros(1, int), np.array([2]), 2, -1)[0].size == 0


def test_a_scan_of_overlapping_offsets_is_whole() -> None:
    """From raw traces of 16 channels to lists of times, in one configuration."""
    names = [f"hsd_{angle}" for angle in range(0, 360, 90)]
    found = parameters(
        {"type": "WaveformBaseline", "inputs": names},
        {"type": "WaveformArrivalTimes", "inputs": names, "relative_threshold": 0.02},
        **{name: random(4096) for name in names},
    )
    events: list[Values] = [
        {name: waveform(EDGES, seed=10 * e + i) for i, name in enumerate(names)} for e in range(3)
    ]
    events[1][names[2]] = None  # type: ignore[index]
    full, last = batches(found, events)
    for name in names:
        missing = name == names[2]
        assert full.arrays[f"{name}_nedges"][0] == 4
        assert full.valid[f"{name}_tofs"].tolist() == [1, 0 if missing else 1]
        assert full.ragged[f"{name}_tofs"].offsets.tolist() == [0, 4, 4 if missing else 8]
        assert last.ragged[f"{name}_tofs"].offsets[1] == 4


# Spectra


def described_centroid(spectrum: Numbers) -> tuple[float, float]:
    v = spectrum.astype(np.int64) - int(np.mean(spectrum[1800:]))
    if v.max() < 1000:
        return 0.0, 0.0
    window = v[1024:2048]
    total = window.sum()
    share = np.cumsum(window) / total
    inside = [i for i in range(1024) if 0.1 < share[i] < 0.9]
    return sum(window[i] * i for i in inside) / (0.8 * total), 0.8 * total


def test_centroid_of_a_spectrum() -> None:
    pixels = np.arange(2048)
    for middle, height in ((1500.0, 9000.0), (1300.0, 30_000.0), (1500.0, 500.0)):
        spectrum = 300 + height * np.exp(-0.5 * ((pixels - middle) / 20) ** 2)
        spectrum += np.random.default_rng(1).normal(0, 5, 2048)
        spectrum = spectrum.astype(np.uint16)
        after = applied(step_of("SpectrumCentroid", inputs="p"), {"p": spectrum})
        centroid, total = described_centroid(spectrum)
        assert float(array(after["p_centroid"])) == pytest.approx(centroid, rel=1e-12)
        assert float(array(after["p_sum"])) == pytest.approx(total, rel=1e-12)
        assert array(after["p_corrected"]).dtype == np.int32
        if height > 1000:
            assert float(array(after["p_centroid"])) + 1024 == pytest.approx(middle, abs=5)
    negative = step_of("SpectrumCentroid", inputs="p", threshold=-1e9)
    assert array(applied(negative, {"p": np.zeros(2048)})["p_centroid"]) == 0
