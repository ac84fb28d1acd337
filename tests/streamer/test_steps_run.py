"""Whole runs with steps: from the examples to files, in one thread and in several."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.streamer.test_examples import FOLDER

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import read_document
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.events import open_event_source
from lclstream.streamer.pipeline import Pipeline
from lclstream.streamer.progress import Progress
from lclstream.streamer.rank import Place
from lclstream.streamer.stopping import StopRequest

Document = dict[str, Any]


def example(name: str, folder: Path, **source: Any) -> Document:
    """Return an example that writes to a folder."""
    written = read_document(FOLDER / f"{name}.yaml")
    written["data_handlers"][0]["write_directory"] = str(folder)
    written["event_source"] |= source
    return dict(written)


def run(written: Document) -> tuple[Parameters, dict[str, Any]]:
    """Run a configuration; return it and the figures of the last report."""
    parameters, progress = parse_parameters(written), Progress(Place(0, 1))
    with StopRequest() as stop:
        Pipeline(parameters, Place(0, 1), progress, stop).run()
    return parameters, dict(progress.final_report().stats)


def files(folder: Path) -> Iterator[h5py.File]:
    paths = sorted(folder.glob("*.h5"), key=lambda path: int(path.stem.rpartition("_")[2]))
    for path in paths:
        with h5py.File(io.BytesIO(path.read_bytes())) as file:
            yield file


def ragged(file: h5py.File, label: str) -> list[np.ndarray[Any, Any]]:
    """Return the readings of every event of a ragged value."""
    offsets = file[file[label].attrs["offsets"]][...]
    return np.split(file[label][...], offsets[1:-1].astype(int))


@pytest.mark.parametrize("workers", [1, 3])
def test_hits_with_their_peaks(tmp_path: Path, workers: int) -> None:
    written = example("hits", tmp_path, events=40) | {"workers": workers}
    parameters, figures = run(written)
    source = open_event_source(parameters, 0, 1)
    true = [event.index for event in source if event.read("truth", "hit")]
    source.close()
    found = []
    for file in files(tmp_path):
        index = file["lclstream/event_index"][...].tolist()
        found += index
        counts = file["peaks_count"][...]
        assert (counts >= 10).all()
        for name in ("peaks_fs", "peaks_ss", "peaks_intensity"):
            assert [len(each) for each in ragged(file, name)] == counts.tolist()
        assert file["detector_data"].dtype == np.uint16
        assert file["detector_data"].shape == (len(index), 2, 256, 512)
        assert file["radial_profile"].shape == (len(index), 200)
        assert "mask" not in file
        # Where a peak is, there are photons.
        frame = file["detector_data"][0].reshape(512, 512)
        rows, columns = (ragged(file, f"peaks_{axis}")[0] for axis in ("ss", "fs"))
        bright = frame[np.rint(rows).astype(int), np.rint(columns).astype(int)]
        assert np.median(bright) > 5 * np.median(frame)
    assert found == true
    assert figures["events_vetoed_by_PeakFinder8"] == 40 - len(true)


def test_images_for_peaknet(tmp_path: Path) -> None:
    parameters, _ = run(example("peaknet", tmp_path, events=20))
    (first, last) = sorted(tmp_path.glob("*.npz"))
    source = open_event_source(parameters, 0, 1)
    frames = [np.asarray(event.read("jungfrau", "raw.calib")) for event in source]
    source.close()
    with np.load(first) as archive:
        images = archive["detector_data"]
        assert archive["detector_data_original_shape"].tolist() == [16, 2, 256, 512]
        assert archive["timestamp"].dtype == np.uint64
    assert (images.shape, images.dtype) == ((16, 2, 384, 576), np.float32)
    padded = np.pad(frames[3], ((0, 0), (64, 64), (32, 32)))
    wanted = (padded - padded.mean()) / np.sqrt(padded.var() + 1e-5)
    assert np.array_equal(images[3], wanted)
    with np.load(last) as archive:
        assert archive["detector_data"].shape[0] == 4


def test_arrival_times_of_a_simulated_digitiser(tmp_path: Path) -> None:
    parameters, figures = run(example("tmo", tmp_path, events=60))
    source = open_event_source(parameters, 0, 1)
    events = {event.index: event for event in source}
    source.close()
    seen, edges, true, false = [], 0, 0, 0
    for file in files(tmp_path):
        index = file["lclstream/event_index"][...].tolist()
        seen += index
        for segment, unit in ((0, 8), (22, 8), (45, 1)):
            label = f"hsd_{segment}"
            times = ragged(file, f"{label}_tofs")
            nedges = file[f"{label}_nedges"][...]
            valid = file[f"lclstream/valid/{label}_nedges"][...]
            assert [len(each) for each in times] == np.where(valid, nedges, 0).tolist()
            for number, found, is_there in zip(index, times, valid, strict=True):
                truth = events[number].read("truth", f"mrco_hsd.{segment}.times")
                assert (truth is not None) == bool(is_there)
                if truth is None:
                    continue
                pulses = np.asarray(truth.array)  # type: ignore[union-attr]
                away = np.abs(found[:, None] / unit - pulses)
                alone = np.diff(pulses, prepend=-99, append=1e9)
                apart = (alone[:-1] > 12) & (alone[1:] > 12) & (pulses > 20) & (pulses < 4000)
                true += int(apart.sum())
                edges += int((away[:, apart].min(axis=0, initial=9) < 2).sum())
                false += int((away.min(axis=1, initial=99) > 6).sum())
    assert seen == [n for n in sorted(events) if _energy(events[n]) >= 0.1]
    assert true > 300
    assert edges / true > 0.95
    assert false / true < 0.02
    assert figures.get("events_vetoed", 0) == 60 - len(seen)


def _energy(event: Any) -> float:
    return float(event.read("gmd", "raw.milliJoulesPerPulse"))


def test_values_of_steps_go_where_the_configuration_wants_them(tmp_path: Path) -> None:
    written = example("hits", tmp_path, events=12, hit_rate=1.0)
    written["data_serializer"]["fields"] = {
        "detector_data": "/entry/data/data",
        "peaks_fs": "/entry/peaks/x",
        "peaks_ss": "/entry/peaks/y",
    }
    _, figures = run(written)
    for file in files(tmp_path):
        assert set(file["entry/peaks"]) == {"x", "x_offsets", "y", "y_offsets"}
        assert len(file["entry/peaks/x"]) == file["entry/peaks/x_offsets"][-1] > 0
    written["data_serializer"]["fields"]["peaks_fss"] = "/entry/peaks/z"
    with pytest.raises(InvalidConfigError, match="did you mean 'peaks_ss'"):
        parse_parameters(written)
    assert figures["events_read"] == 12
