"""The examples for clients of other formats, run as a whole."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from lclstream.client.formats import Decoder
from lclstream.core.models import read_document
from lclstream.streamer import simplon
from lclstream.streamer.config import Parameters, parse_parameters
from lclstream.streamer.rank import Place
from lclstream.streamer.run import run_rank
from lclstream.streamer.sources.simulated import expected_event

FOLDER = Path(__file__).parents[2] / "streamer" / "examples"
EVENTS = 12


def run(name: str, folder: Path, **changes: Any) -> tuple[Parameters, list[bytes]]:
    """Run an example with files in place of its socket; return the messages in order."""
    document = read_document(FOLDER / f"{name}.yaml")
    document["event_source"] |= {"events": EVENTS, **changes}
    document["data_handlers"] = [
        {"type": "BinaryFileWritingDataHandler", "write_directory": str(folder), "file_suffix": "m"}
    ]
    parameters = parse_parameters(document)
    assert run_rank(parameters, Place(0, 1)) == 0
    files = sorted(folder.glob("*.m"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return parameters, [path.read_bytes() for path in files]


def test_hits_for_crystfel(tmp_path: Path) -> None:
    parameters, messages = run("crystfel", tmp_path)
    source: Any = parameters.event_source
    assert 0 < len(messages) < EVENTS
    for payload in messages:
        message = msgpack.unpackb(payload)
        assert list(message)[:4] == [
            "detector_data", "beam_energy", "detector_distance", "peak_list",
        ]  # fmt: skip
        event = expected_event(source, message["event_index"], "tst000124", 3)
        assert message["timestamp"] == event.timestamp
        frame = np.asarray(event.read("jungfrau", "raw.calib"))
        found = message["detector_data"]
        data = np.frombuffer(found["data"], found["type"]).reshape(found["shape"])
        assert np.array_equal(data, frame.reshape(512, 512))
        assert message["beam_energy"] == pytest.approx(12398.42 / 1.3, rel=0.01)
        assert message["detector_distance"] == 100.0
        peaks = {name: np.array(column) for name, column in message["peak_list"].items()}
        assert len(peaks["fs"]) == len(peaks["ss"]) == len(peaks["intensity"]) >= 10
        # Where the peaks are, in the slab that is sent, it is bright.
        at_peaks = data[np.rint(peaks["ss"]).astype(int), np.rint(peaks["fs"]).astype(int)]
        assert np.median(at_peaks) > 5 * np.median(data) + 1


def test_images_for_clients_of_detectors(tmp_path: Path) -> None:
    parameters, messages = run("stream2", tmp_path, missing_frames=0.2)
    source: Any = parameters.event_source
    start = simplon.decode(messages[0])
    assert isinstance(start, simplon.StartMessage)
    assert (start.series_id, start.fields["image_dtype"]) == (4, "uint16")
    assert (start.fields["image_size_x"], start.fields["image_size_y"]) == (512, 512)
    assert isinstance(simplon.decode(messages[-1]), simplon.EndMessage)
    decoder = Decoder()
    batches = [decoder.decode(message) for message in messages[1:-1]]
    assert len(batches) == EVENTS
    missing = 0
    for number, (batch, message) in enumerate(zip(batches, messages[1:-1], strict=True)):
        (decoded,) = batch
        assert decoded.index == number
        event = expected_event(source, number, "tst000124", 4)
        image, frame = batch["threshold_1"][0], event.read("jungfrau", "raw.calib")
        assert decoded.is_valid("threshold_1") == (frame is not None)
        if frame is None:
            missing += 1
            assert (image == 65535).all()
            continue
        said: Any = simplon.decode(message)
        data = said.user_data
        good = np.asarray(event.read("jungfrau", "raw.mask")).reshape(512, 512) != 0
        assert np.array_equal(image == data["masked"], ~good)
        back = image * data["scale"] + data["offset"]
        wanted = np.asarray(frame).reshape(512, 512)
        fits = good & (wanted >= -1) & (wanted <= 654)
        assert np.abs(back - wanted)[fits].max() <= 0.00501
    assert 0 < missing < EVENTS
