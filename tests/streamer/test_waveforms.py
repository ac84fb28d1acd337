"""The simulated digitiser: waveforms and windows as TMO's, and the same for everybody."""

from typing import Any

import numpy as np
import pytest

from lclstream.core.errors import InvalidConfigError
from lclstream.core.ledger import digest64
from lclstream.streamer.config import SimulatedDetectorEventSourceConfig, parse_parameters
from lclstream.streamer.config.simulated_parts import SimulatedCamera, SimulatedDigitizer
from lclstream.streamer.events import open_event_source
from lclstream.streamer.sources.simulated import expected_event
from lclstream.streamer.sources.waveforms import REACH, digitizer
from lclstream.streamer.steps import Steps
from lclstream.streamer.values import Ragged

Config = SimulatedDetectorEventSourceConfig


def config_of(cameras: Any = (), **digitizer_settings: Any) -> Config:
    return Config(
        panels=1, shape=(32, 32), seed=7, cameras=cameras,
        digitizers=(SimulatedDigitizer(name="mrco_hsd", **digitizer_settings),),
    )  # fmt: skip


def read(config: Config, index: int, field: str, name: str = "mrco_hsd") -> Any:
    value = expected_event(config, index).read(name, field)
    return value.array if isinstance(value, Ragged) else value


def test_waveforms_are_the_same_on_every_machine() -> None:
    config = config_of(segments=(0, 22), samples=2048)
    waveform = read(config, 3, "raw.waveforms.22.0")
    assert (waveform.dtype, waveform.shape) == (np.uint16, (2048,))
    assert f"{digest64(waveform.tobytes()):016x}" == "e043a011dbc060dd"
    assert read(config, 3, "raw.waveforms.22.times").tolist() == [i / 6e9 for i in range(2048)]


def test_segments_events_seeds_and_digitizers_differ() -> None:
    config = config_of(segments=(0, 22))
    other = Config(seed=8, digitizers=config.digitizers)
    second = SimulatedDigitizer(name="second", segments=(0, 22))
    both = config.model_copy(update={"digitizers": (*config.digitizers, second)})
    found = [
        read(config, 0, "raw.waveforms.0.0"), read(config, 0, "raw.waveforms.22.0"),
        read(config, 1, "raw.waveforms.0.0"), read(other, 0, "raw.waveforms.0.0"),
        read(both, 0, "raw.waveforms.0.0", "second"),
    ]  # fmt: skip
    assert len({waveform.tobytes() for waveform in found}) == len(found)
    # What was there before another detector was added stays as it was.
    assert np.array_equal(read(both, 0, "raw.waveforms.0.0"), found[0])


def test_pulses_are_where_and_as_high_as_the_truth_says() -> None:
    config = config_of(noise_adu=0, converter_offset_adu=0, pulse_adu=(300, 900), hits=4)
    counts = []
    for index in range(30):
        waveform = read(config, index, "raw.waveforms.0.0").astype(float) - 2048
        times = read(config, index, "mrco_hsd.0.times", "truth")
        heights = read(config, index, "mrco_hsd.0.heights", "truth")
        counts.append(len(times))
        assert np.all(np.diff(times) >= 0)
        for time, height in zip(times, heights, strict=True):
            place = round(float(time))
            if 2 < place < 4093:
                # Neighbours may add to it; half a sample beside the crest a little is lacking.
                assert waveform[place - 1 : place + 2].max() > 0.95 * height - 1
        far = np.ones(len(waveform), bool)
        for time in times:
            far[max(int(time - REACH * 2.5) - 1, 0) : int(time + REACH * 2.5) + 2] = False
        assert not waveform[far].any()
    assert 3 < np.mean(counts) < 5
    assert len(set(counts)) > 3


def test_the_converters_differ_by_their_offsets_and_saturate() -> None:
    config = config_of(hits=0, noise_adu=0, converters=4, converter_offset_adu=50)
    waveform = read(config, 0, "raw.waveforms.0.0")
    phases = [set(waveform[phase::4].tolist()) for phase in range(4)]
    assert all(len(each) == 1 for each in phases)
    assert len(set.union(*phases)) == 4
    assert max(abs(each - 2048) for each in set.union(*phases)) <= 51
    loud = config_of(hits=40, pulse_adu=(3000, 4000))
    assert read(loud, 0, "raw.waveforms.0.0").max() == 4095


@pytest.mark.parametrize("markers", [True, False])
def test_windows_are_those_that_the_step_finds(document: dict[str, Any], markers: bool) -> None:
    config = config_of(markers=markers, hits=8, samples=4000)
    document["processing_pipeline"] = {
        "type": "ProcessingPipeline", "batch_size": 1,
        "steps": [{"type": "WaveformWindows", "inputs": ["frame"], "threshold": 2048 + 60,
                   "markers": markers}],
    }  # fmt: skip
    steps = Steps(parse_parameters(document))
    for index in range(20):
        event = expected_event(config, index)
        values = {"frame": read(config, index, "raw.waveforms.0.0")}
        after = steps.apply(event, values)
        assert after is not None
        for what in ("starts", "lengths", "samples"):
            ours = event.read("mrco_hsd", f"raw.peaks.0.0.{what}")
            step = after[f"frame_{what}"]
            assert isinstance(ours, Ragged)
            assert isinstance(step, Ragged)
            assert ours.array.dtype == step.array.dtype
            assert np.array_equal(ours.array, step.array)
    starts, lengths = (read(config, 0, f"raw.peaks.0.0.{each}") for each in ("starts", "lengths"))
    if markers:
        assert (starts[0], lengths[0]) == (0, 64)
        assert (starts[-2:].tolist(), lengths[-2:].tolist()) == ([4000, 4000], [0, 0])


def test_a_waveform_may_be_missing() -> None:
    config = config_of(segments=(0, 1), missing=0.5)
    missing = [
        [read(config, index, f"raw.waveforms.{segment}.0") is None for index in range(40)]
        for segment in (0, 1)
    ]
    assert missing[0] != missing[1]
    assert all(5 < sum(each) < 35 for each in missing)
    for index in range(40):
        peaks = expected_event(config, index).read("mrco_hsd", "raw.peaks.0.0.samples")
        assert (peaks is None) == missing[0][index]
        times = expected_event(config, index).read("truth", "mrco_hsd.0.times")
        assert (times is None) == missing[0][index]


def test_more_cameras_see_the_same_crystals() -> None:
    cameras = (
        SimulatedCamera(name="epix", panels=4, shape=(128, 96), distance_mm=60),
        SimulatedCamera(name="rayonix", shape=(128, 128), missing_frames=1),
    )
    config = config_of(cameras)
    alone = config_of()
    brightest: dict[bool, list[float]] = {True: [], False: []}
    for index in range(10):
        event = expected_event(config, index)
        frame = np.asarray(event.read("epix", "raw.raw"))
        assert frame.shape == (4, 128, 96)
        assert frame.dtype == np.uint16
        assert np.asarray(event.read("epix", "raw.calib")).dtype == np.float32
        assert event.read("epix", "_detid") == "epix_simulated"
        assert event.read("rayonix", "raw.raw") is None
        assert np.array_equal(
            np.asarray(event.read("jungfrau", "raw.raw")), read(alone, index, "raw.raw", "jungfrau")
        )
        photons = np.asarray(event.read("epix", "raw.calib"))
        brightest[bool(event.read("truth", "hit"))].append(float(photons.max()))
    assert min(brightest[True]) > 2 * max(brightest[False])


def test_ranks_read_what_the_receiver_expects(document: dict[str, Any]) -> None:
    document["event_source"] |= {
        "events": 9, "digitizers": [{"segments": [0, 45], "samples": 512}], "events_per_step": 4,
        "cameras": [{"name": "epix", "shape": [16, 16]}],
    }  # fmt: skip
    parameters = parse_parameters(document)
    config = parameters.event_source
    assert isinstance(config, Config)
    found = {}
    for rank in range(2):
        source = open_event_source(parameters, rank, 2)
        for event in source:
            found[event.index] = (event.step, np.asarray(event.read("hsd", "raw.waveforms.45.0")),
                                  np.asarray(event.read("epix", "raw.raw")))  # fmt: skip
        source.close()
    assert sorted(found) == list(range(9))
    for index, (step, waveform, frame) in found.items():
        assert step == index // 4
        assert np.array_equal(waveform, read(config, index, "raw.waveforms.45.0", "hsd"))
        assert np.array_equal(frame, read(config, index, "raw.raw", "epix"))


@pytest.mark.parametrize(
    ("name", "field", "text"),
    [
        ("hsd", "raw.waveforms.1.0", r"'hsd' has no field 'raw.waveforms.1.0' \(did you mean"),
        ("hsb", "raw.waveforms.0.0", r"no detector or variable 'hsb' \(did you mean 'hsd'"),
        ("truth", "hsd.1.times", r"'truth' has no field 'hsd.1.times'"),
    ],
)
def test_readings_that_are_not_there_are_named(name: str, field: str, text: str) -> None:
    config = Config(digitizers=(SimulatedDigitizer(),))
    with pytest.raises(InvalidConfigError, match=text):
        expected_event(config, 0).read(name, field)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"digitizers": [{"name": "jungfrau"}]}, "detectors must have different names: jungfrau"),
        ({"cameras": [{"name": "gmd"}]}, "detectors must have different names: gmd"),
        ({"digitizers": [{"segments": [1, 1]}]}, "segments must be different numbers"),
        ({"digitizers": [{"lines": [1.5]}]}, "lines must be fractions of the waveform"),
        ({"digitizers": [{"pulse_adu": [5, 1]}]}, "the smallest and the largest height"),
    ],
)
def test_mistakes_are_named(document: dict[str, Any], settings: Any, text: str) -> None:
    document["event_source"] |= settings
    with pytest.raises(InvalidConfigError, match=text):
        parse_parameters(document)


def test_a_digitizer_is_made_once() -> None:
    config = SimulatedDigitizer()
    assert digitizer(config, 1, 0) is digitizer(SimulatedDigitizer(), 1, 0)
