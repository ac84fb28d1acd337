"""HDF5 messages before other readers: one in pure Python, and the HDF5 library of years ago."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.oracles import oracle
from tests.streamer.hdf5_messages import messages_of, parameters_of
from tests.streamer.serializing import Given, events

from lclstream.streamer.values import Ragged

# Pyfive knows nothing of the library; HDF5 1.12 is what h5py 3.8 brings.
READERS = {
    "pyfive": (["pyfive==1.3.0"], "import pyfive as h5"),
    "h5py-3.8": (["h5py==3.8.0", "numpy==1.26.4"], "import h5py as h5"),
}
SCRIPT = """
import sys
import numpy as np
{load}
for message, wanted in zip(sys.argv[1::2], sys.argv[2::2]):
    expected = np.load(wanted)
    with h5.File(message, "r") as file:
        for path in expected.files:
            found = file[path][...]
            assert found.dtype == expected[path].dtype, (path, found.dtype)
            assert np.array_equal(found, expected[path]), path
        text = file["lclstream"].attrs["experiment"]
        assert text in ("tst000124", b"tst000124"), text
print("ok")
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("reader", READERS)
def test_other_readers_read_our_files(reader: str, tmp_path: Path) -> None:
    requirements, load = READERS[reader]
    python = oracle(f"hdf5-{reader}", requirements)
    generator = np.random.default_rng(0)
    # More chunks than a node of the index has room for, and than a level.
    values: list[Given] = [
        {
            "frame": generator.poisson(2.0, (2, 5, 7)).astype(np.uint16),
            "energy": np.float64(index),
            "peaks": Ragged(np.arange(index % 4 * 2, dtype=np.float32).reshape(-1, 2)),
        }
        for index in range(4200)
    ]
    paths = {"frame": "data/frame", "energy": "data/energy", "peaks": "peaks"}
    files: list[str] = []
    for codec in (None, "gzip", "gzip_with_shuffle"):
        parameters = parameters_of(list(paths), 4150, fields=paths, compression=codec)
        first = 0
        for number, message in enumerate(messages_of(parameters, events(values))):
            given = values[first : first + 4150]
            ragged = [each["peaks"] for each in given]
            peaks = [each.array for each in ragged if isinstance(each, Ragged)]
            path = tmp_path / f"{codec}{number}"
            path.with_suffix(".h5").write_bytes(message)
            expected: Any = {
                "data/frame": np.stack([np.asarray(each["frame"]) for each in given]),
                "data/energy": np.stack([np.asarray(each["energy"]) for each in given]),
                "peaks": np.concatenate(peaks),
                "lclstream/event_index": np.arange(first, first + len(given), dtype=np.uint64),
            }
            np.savez(path.with_suffix(".npz"), **expected)
            files += [str(path.with_suffix(".h5")), str(path.with_suffix(".npz"))]
            first += len(given)
        assert first == len(values)
    done = subprocess.run(
        [python, "-c", SCRIPT.format(load=load), *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ok\n", done.stderr
