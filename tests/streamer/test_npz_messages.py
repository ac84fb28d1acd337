"""Messages as NumPy archives: NumPy and other ZIP readers get back what went in."""

import io
import os
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.serializing import (
    STAMP,
    Given,
    events,
    parameters_of,
    same,
    sent,
    shares_memory,
    tables,
)

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.serializers import npz_archive
from lclstream.streamer.serializers.contents import Data
from lclstream.streamer.serializers.npz_archive import (
    ALIGNMENT,
    Archive,
    Member,
    deflated_member,
    stored_member,
)
from lclstream.streamer.serializers.workers import OrderedWorkers
from lclstream.streamer.values import Ragged

TYPE = "NumpyBinarySerializer"
OWN = "lclstream/"


def loaded(payload: bytes) -> dict[str, Any]:
    """Return what a message holds; zipfile checks every checksum."""
    with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@settings(max_examples=60, deadline=None)
@given(
    values=tables(),
    batch_size=st.integers(1, 5),
    options=st.sampled_from(
        [
            {"use_compression": False},
            {"use_compression": True},
            {"compression_level": 1, "compression_threads": 2},
        ]
    ),
)
def test_any_events_come_back(
    values: list[Given], batch_size: int, options: dict[str, Any]
) -> None:
    parameters = parameters_of(values[0], batch_size, type=TYPE, **options)
    index = 0
    for payload in sent(parameters, events(values)).payloads:
        arrays = loaded(payload)
        for row in range(len(arrays[f"{OWN}event_index"])):
            assert arrays[f"{OWN}event_index"][row] == index
            assert arrays[f"{OWN}timestamp"][row] == STAMP + index
            assert arrays[f"{OWN}step"][row] == index // 2
            for name, wanted in values[index].items():
                exists = wanted is not None
                assert arrays[f"{OWN}valid/{name}"][row] == exists
                found = arrays[name]
                if isinstance(values[0][name], Ragged):
                    offsets = arrays[f"{OWN}offsets/{name}"]
                    part = found[offsets[row] : offsets[row + 1]]
                    assert same(part, wanted) if exists else not len(part)
                elif exists:
                    assert same(found[row, ...], wanted)
            index += 1
    assert index == len(values)


def test_one_and_the_same_as_numpy_writes_without_identification() -> None:
    values: list[Given] = [
        {"frame": np.full((3, 4), i, np.uint16), "timestamp": np.uint64(STAMP + i)}
        for i in range(2)
    ]
    for compressed, save in ((False, np.savez), (True, np.savez_compressed)):
        options = {"use_compression": compressed, "identification": False}
        (payload,) = sent(
            parameters_of(values[0], 2, type=TYPE, **options), events(values)
        ).payloads
        memory = io.BytesIO()
        arrays = {name: np.array([each[name] for each in values]) for name in values[0]}
        save(memory, **arrays)  # type: ignore[arg-type]
        ours, theirs = (zipfile.ZipFile(io.BytesIO(each)) for each in (payload, memory.getvalue()))
        assert ours.namelist() == theirs.namelist()
        for mine, golden in zip(ours.infolist(), theirs.infolist(), strict=True):
            assert (mine.compress_type, mine.CRC) == (golden.compress_type, golden.CRC)
            assert ours.read(mine) == theirs.read(golden)


def test_what_identifies_a_message() -> None:
    values: list[Given] = [{"a": float(i)} for i in range(3)]
    first, second = sent(
        parameters_of(["a"], 2, type=TYPE, use_compression=False), events(values)
    ).payloads
    names = ("sequence", "run", "rank", "ranks", "format", "experiment", "source_identifier")
    assert [loaded(first)[OWN + name][()] for name in names] == [
        0, 3, 1, 3, 1, b"tst000124", b"exp=tst000124,run=3",
    ]  # fmt: skip
    assert loaded(second)[f"{OWN}sequence"] == 1
    assert loaded(second)[f"{OWN}sequence"].dtype == np.uint64


def test_arrays_are_sent_from_where_they_are_and_begin_at_a_round_offset() -> None:
    values: list[Given] = [{"frame": np.zeros((64, 64), np.float32), "a": 1.0}] * 3
    result = sent(parameters_of(values[0], 3, type=TYPE, use_compression=False), events(values))
    (((message,),), (batch,)) = (result.messages, result.batches)
    assert shares_memory(message, batch.arrays["frame"][2])
    payload = message.tobytes()
    for name, array in (("frame", batch.arrays["frame"][0]), ("a", batch.arrays["a"])):
        # Both begin with the same bytes where NumPy's header ends.
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            info = archive.getinfo(f"{name}.npy")
        begin = payload.index(b"\x93NUMPY", info.header_offset)
        assert begin % ALIGNMENT == 0
        assert payload.index(array.tobytes(), begin) % ALIGNMENT == 0


def test_original_shapes_are_those_of_the_batch() -> None:
    shape = np.array([1, 16, 32], np.int64)
    values: list[Given] = [{"frame": np.zeros((1, 21, 40)), "frame_original_shape": shape}] * 2
    (payload,) = sent(parameters_of(values[0], 2, type=TYPE), events(values)).payloads
    found = loaded(payload)["frame_original_shape"]
    assert (found.dtype, found.tolist()) == (np.dtype(np.int32), [2, 1, 16, 32])


def test_original_shapes_that_differ_stay_those_of_the_events() -> None:
    values: list[Given] = [
        {"frame": np.zeros((1, 21, 40)), "frame_original_shape": np.array([1, 16, i])}
        for i in range(2)
    ]
    (payload,) = sent(parameters_of(values[0], 2, type=TYPE), events(values)).payloads
    assert loaded(payload)["frame_original_shape"].tolist() == [[1, 16, 0], [1, 16, 1]]


@pytest.mark.parametrize("threads", [1, 3])
def test_large_arrays_are_compressed_in_blocks(threads: int) -> None:
    array = np.random.default_rng(1).poisson(2.0, 3 << 19).astype(np.uint16)
    workers = OrderedWorkers(threads)
    try:
        member = deflated_member("x", Data.of(array), 1, workers)
    finally:
        workers.close()
    assert len(member.pieces) == 1 + 3
    archive = Archive()
    archive.add(member)
    payload = b"".join(archive.finish())
    assert np.array_equal(loaded(payload)["x"], array)
    # Blocks cost next to nothing.
    whole = len(zlib.compress(array.tobytes(), 1))
    assert len(payload) < whole * 1.001 + 1000


class Pieces(io.RawIOBase):
    """A message as a file, without joining it."""

    def __init__(self, pieces: tuple[memoryview, ...]) -> None:
        self._pieces = pieces
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = sum(map(len, self._pieces))
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: size}[whence] + offset
        return self._at

    def readinto(self, into: Any) -> int:
        start = 0
        for piece in self._pieces:
            if start <= self._at < start + len(piece):
                part = piece[self._at - start : self._at - start + len(into)]
                into[: len(part)] = part
                self._at += len(part)
                return len(part)
            start += len(piece)
        return 0


def test_archives_of_more_than_32_bits() -> None:
    # Memory that is never touched takes none.
    large = np.zeros((5 << 30) - 128, np.uint8)
    head = npz_archive.array_header("|u1", large.shape)
    size = len(head) + large.size
    archive = Archive()
    archive.add(stored_member("first", Data.of(np.arange(3))))
    archive.add(Member(b"large.npy", zipfile.ZIP_STORED, 0, size, (head, large.data)))
    count = 70_000 if os.environ.get("LCLSTREAM_SOAK") else 3
    for number in range(count):
        archive.add(stored_member(f"a{number}", Data.of(np.array(number))))
    with zipfile.ZipFile(Pieces(archive.finish())) as file:
        assert file.getinfo("large.npy").file_size == size == 5 << 30
        assert len(file.namelist()) == 2 + count
        for name, value in (("first", [0, 1, 2]), ("a0", 0), (f"a{count - 1}", count - 1)):
            with file.open(f"{name}.npy") as member:
                assert np.load(io.BytesIO(member.read())).tolist() == value
        with file.open("large.npy") as member:
            assert member.read(len(head)) == head


def test_names_of_ours_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match=r"value 'lclstream/x': lclstream/ is where our"):
        parameters_of(["lclstream/x"], 1, type=TYPE)
