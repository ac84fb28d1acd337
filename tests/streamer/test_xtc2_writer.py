"""What the writer refuses, and that a file appears only when it is complete."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.xtc2_runs import START, field

from lclstream.streamer.sources.xtc2_format import FieldType, Names, later
from lclstream.streamer.sources.xtc2_writer import Xtc2Writer, encode_names, encode_shapes_data

FRAME = Names(
    detector="cam",
    algorithm="raw",
    fields=(field("frame", FieldType.U2, 2), field("count", FieldType.U1)),
)


def writer(path: Path, *detectors: Names) -> Xtc2Writer:
    return Xtc2Writer(path, experiment="any", run=1, start=START, detectors=detectors)


def test_a_file_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "run.xtc2"
    with writer(path, FRAME):
        assert [each.name for each in tmp_path.iterdir()] == ["run.xtc2.inprogress"]
    assert [each.name for each in tmp_path.iterdir()] == ["run.xtc2"]


def test_an_unfinished_file_keeps_its_suffix(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=f"^timestamp {START} is not after {START}$"),
        writer(tmp_path / "run.xtc2", FRAME) as file,
    ):
        file.begin_run(START)
    assert [each.name for each in tmp_path.iterdir()] == ["run.xtc2.inprogress"]


def test_time_goes_on(tmp_path: Path) -> None:
    with writer(tmp_path / "run.xtc2", FRAME) as file:
        file.begin_run(later(START, 10))
        with pytest.raises(ValueError, match="is not after"):
            file.end_run(later(START, 12))


def test_detectors_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^two detectors have the same name"):
        writer(tmp_path / "run.xtc2", FRAME, FRAME)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frame": np.zeros((2, 2), np.uint16)}, r"cam.raw takes frame, count; got \['frame'\]"),
        ({"frame": np.zeros((2, 2), np.uint32), "count": 1}, "is uint16, cannot hold uint32"),
        ({"frame": np.zeros((2, 2), np.float16), "count": 1}, "is uint16, cannot hold float16"),
        ({"frame": np.zeros(2, np.uint16), "count": 1}, "has rank 2, got 1 dimensions"),
        ({"frame": [[1]], "count": [1]}, "has rank 0, got 1 dimensions"),
    ],
)
def test_values_must_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_shapes_data(FRAME, values)


def test_a_number_must_fit() -> None:
    with pytest.raises(OverflowError):
        encode_shapes_data(FRAME, {"frame": [[1]], "count": 256})


def test_names_are_short() -> None:
    with pytest.raises(ValueError, match=r"^a name has at most 255 bytes"):
        encode_names(Names(detector="x" * 256, algorithm="raw", fields=()))
