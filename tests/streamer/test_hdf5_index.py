"""Indexes of chunks that we write are what the HDF5 library reads, extends and rewrites."""

import io

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclstream.streamer.serializers.hdf5_index import ChunkIndex, starts_of
from lclstream.streamer.serializers.hdf5_template import (
    ADDRESS,
    END_OF_FILE,
    Dataset,
    build_template,
)

# Around the places where a node is full, and a level.
COUNTS = (1, 2, 63, 64, 65, 128, 129, 64 * 64 - 1, 64 * 64, 64 * 64 + 1)


def file_of(data: np.ndarray, chunk_rows: int, chunks: list[bytes], skipped: list[int]) -> bytes:
    """Return a file with one dataset whose chunks lie in disorder."""
    dataset = Dataset(dtype=data.dtype, shape=data.shape[1:], chunk_rows=chunk_rows)
    template = build_template({"/a/b": dataset}, "/a", {"text": "x" * 100})
    index = ChunkIndex(data.ndim, chunk_rows, len(chunks))
    at = len(template.content)
    order = np.random.default_rng(len(chunks)).permutation(len(chunks))
    sizes = np.array([len(each) for each in chunks], np.uint32)
    places = np.empty(len(chunks), np.uint64)
    places[order] = starts_of(sizes[order], at + index.nbytes)
    image = np.full(at + index.nbytes + int(sizes.sum()), 0xAA, np.uint8)
    image[:at] = np.frombuffer(template.content, np.uint8)
    index.write(image, at)
    index.place(image, at, places, sizes, np.array(skipped, np.uint32))
    for place, chunk in zip(places, chunks, strict=True):
        image[int(place) : int(place) + len(chunk)] = np.frombuffer(chunk, np.uint8)
    template.fields["/a/b"].write(image, len(data), at + index.root, 0)
    ADDRESS.pack_into(image.data, END_OF_FILE, len(image))
    return image.tobytes()


@pytest.mark.parametrize("count", COUNTS)
def test_every_number_of_chunks_is_read(count: int) -> None:
    data = np.random.default_rng(count).normal(size=(count, 3))
    content = file_of(data, 1, [row.tobytes() for row in data], [0] * count)
    with h5py.File(io.BytesIO(content)) as file:
        assert np.array_equal(file["a/b"][...], data)
        assert file["a/b"].id.get_num_chunks() == count
        found = [file["a/b"].id.get_chunk_info_by_coord((row, 0)) for row in (0, count - 1)]
        assert [each.size for each in found] == [24, 24]
        assert file["a"].attrs["text"] == "x" * 100


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 300),
    shape=st.lists(st.integers(1, 4), max_size=4).map(tuple),
    chunk_rows=st.integers(1, 5),
    dtype=st.sampled_from(["|u1", "<f4", "<f8", "|S3"]),
)
def test_any_form_is_read_and_can_be_rewritten(
    count: int, shape: tuple[int, ...], chunk_rows: int, dtype: str
) -> None:
    data = np.random.default_rng(count).integers(0, 9, (count, *shape)).astype(dtype)
    filled = np.zeros((-(-count // chunk_rows) * chunk_rows, *shape), dtype)
    filled[:count] = data
    chunks = [each.tobytes() for each in filled.reshape(-1, chunk_rows, *shape)]
    memory = io.BytesIO(file_of(data, chunk_rows, chunks, [0] * len(chunks)))
    # The library changes a chunk, adds and removes objects: it must find its way.
    with h5py.File(memory, "r+") as file:
        assert np.array_equal(file["a/b"][...], data)
        data[count // 2] = np.array(7).astype(dtype)
        file["a/b"][count // 2] = data[count // 2]
        file["a/c"] = data
        file["a/b"].attrs["more"] = 1
    with h5py.File(memory, "r+") as file:
        assert np.array_equal(file["a/b"][...], data)
        assert np.array_equal(file["a/c"][...], data)
        del file["a/b"]
        assert list(file["a"]) == ["c"]


def test_library_goes_on_where_we_have_ended() -> None:
    """A dataset that can grow gets its next chunks from the library, across full nodes."""
    count = 64 * 3 + 5
    data = np.arange(count, dtype=np.int32)
    memory = io.BytesIO(file_of(data, 1, [row.tobytes() for row in data], [0] * count))
    with h5py.File(memory, "r+") as file:
        old = file["a/b"]
        copy = file.create_dataset("c", (0,), "i4", maxshape=(None,), chunks=(1,))
        copy.resize(count, axis=0)
        copy[...] = old[...]
        for row in range(0, count, 7):
            old[row] = -row
    data[::7] = -data[::7]
    with h5py.File(memory) as file:
        assert np.array_equal(file["a/b"][...], data)
        assert np.array_equal(abs(file["c"][...]), abs(data))


def test_sizes_of_chunks_follow_each_other() -> None:
    assert starts_of([3, 0, 5], 100).tolist() == [100, 103, 103]
    assert starts_of(np.array([1 << 31] * 3, np.uint32), 0).tolist() == [0, 1 << 31, 1 << 32]
