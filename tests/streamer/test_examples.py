"""The examples are what people copy: each must load, say nothing odd, and read its data."""

from pathlib import Path

import numpy as np
import pytest

from lclstream.streamer.config import Parameters, load_parameters
from lclstream.streamer.data_sources import Extractor
from lclstream.streamer.events import open_event_source

FOLDER = Path(__file__).parents[2] / "streamer" / "examples"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
DATA = Path(__file__).parents[3] / "shared" / "data"


def test_there_are_examples() -> None:
    assert [each.stem for each in EXAMPLES] == [
        "crystfel", "detector_stream", "folder", "hdf5_cspad", "hits",
        "peaknet", "simulated", "stream2", "tmo", "xtc2",
    ]  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads(path: Path) -> None:
    assert load_parameters(path).notices == ()
    command = f"lclstream streamer run --config {path.relative_to(FOLDER.parents[1])}"
    assert command in path.read_text()


def frames(parameters: Parameters, count: int) -> list[np.ndarray]:
    """Return the detector's frames of the first events."""
    extractor = Extractor(parameters, list(parameters.data_sources))
    source = open_event_source(parameters, 0, 1)
    found = []
    for event, _ in zip(source, range(count), strict=False):
        values = extractor.extract(event)
        assert values is not None
        assert all(value is not None for name, value in values.items() if name != "detector_data")
        frame = values["detector_data"]
        assert isinstance(frame, np.ndarray)
        found.append(frame)
    source.close()
    return found


def test_the_simulated_example_gives_events() -> None:
    found = frames(load_parameters(FOLDER / "simulated.yaml"), 3)
    assert {(each.shape, str(each.dtype)) for each in found} == {((2, 256, 512), "uint16")}


@pytest.mark.parametrize(
    ("name", "file", "shape"),
    [
        ("xtc2", "mfx101332224_r0007_jungfrau05M.xtc2", (1, 512, 1024)),
        ("hdf5_cspad", "cxi78513_r0014_cspad.h5", (5920, 388)),
    ],
)
def test_an_example_reads_real_data(name: str, file: str, shape: tuple[int, ...]) -> None:
    if not (DATA / file).exists():
        pytest.skip(f"{file} is not here")
    example = load_parameters(FOLDER / f"{name}.yaml")
    parameters = example.model_copy(update={"source_identifier": f"files={DATA / file}"})
    assert [each.shape for each in frames(parameters, 5)] == [shape, shape]
