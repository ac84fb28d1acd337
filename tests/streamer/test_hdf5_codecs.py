"""Codecs of HDF5 chunks: readers without our code get back what went in."""

import ctypes
import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.streamer.serializing import PLACE, Given, events, parameters_of, sent

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Batch, Column, Form
from lclstream.streamer.config import HDF5BinarySerializerConfig
from lclstream.streamer.serializers import open_serializer
from lclstream.streamer.serializers.codecs import (
    Codec,
    Filter,
    blosc2,
    deflate,
    libraries,
    open_codec,
)
from lclstream.streamer.serializers.codecs.cores import cores_of_rank
from lclstream.streamer.serializers.codecs.workers import Workers
from lclstream.streamer.serializers.hdf5_rows import address_of
from lclstream.streamer.values import Array

CODECS = (
    "gzip", "gzip_with_shuffle", "bitshuffle_with_lz4", "bitshuffle_with_zstd",
    "blosc2_with_lz4", "blosc2_with_zstd", "zstd", "zfp",
)  # fmt: skip
DTYPES = (
    "|b1", "|i1", "|u1", "<i2", "<u2", ">u2", "<i4", "<u4", "<i8", "<u8",
    "<f2", "<f4", ">f4", "<f8", "<c8", "|S3", "|S300",
)  # fmt: skip
# A scalar, one below and one above the size that is worth a filter, an image.
SHAPES = ((), (7,), (2, 16, 33), (70, 90))
BATCH = 3
# Reads with what every consumer has: it must not need, or even find, our code.
READER = """
import json, sys
sys.modules["lclstream"] = None
import h5py, hdf5plugin, numpy as np
for case in json.load(sys.stdin):
    wanted = np.load(case["wanted"])
    with h5py.File(case["message"]) as file:
        for name, expected in wanted.items():
            dataset = file[case["prefix"] + name]
            values = dataset[...]
            assert dataset.chunks == (1, *expected.shape[1:]), (case, name, dataset.chunks)
            assert values.dtype.str == case["dtypes"][name], (case, name, values.dtype)
            lossy = 32013 in [
                dataset.id.get_create_plist().get_filter(i)[0]
                for i in range(dataset.id.get_create_plist().get_nfilters())
            ]
            if lossy:
                # Of whole numbers zfp keeps the upper bits only.
                error = {"<i4": 16, "<i8": 512}.get(values.dtype.str, 1e-3)
                assert np.allclose(values, expected, rtol=1e-5, atol=error), (case, name)
            else:
                assert values.tobytes() == expected.tobytes(), (case, name)
print("ok")
"""


def readings(count: int) -> list[Given]:
    generator = np.random.default_rng(0)
    return [
        {
            f"v{number}": np.asarray(np.rint(generator.normal(40, 5, shape))).astype(dtype)
            for number, (dtype, shape) in enumerate((d, s) for d in DTYPES for s in SHAPES)
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def values() -> list[Given]:
    return readings(BATCH + 1)


def stack(arrays: list[Array]) -> Array:
    # numpy's own would change the order of the bytes.
    return np.stack(arrays).astype(arrays[0].dtype)


@pytest.mark.parametrize("codec", [None, *CODECS])
def test_plain_readers_read_every_dtype_in_every_layout(
    codec: str | None, values: list[Given], tmp_path: Path
) -> None:
    names, cases = list(values[0]), []
    for layout, prefix in (("flat", "/"), ("fields", "/deep/er/")):
        parameters = parameters_of(
            names, BATCH, type="HDF5BinarySerializer", compression=codec, compression_level=2,
            fields={name: prefix + name for name in names}, hdf5_layout=layout,
            compression_threads=2,
        )  # fmt: skip
        # A full batch and one that is not.
        for number, message in enumerate(sent(parameters, events(values)).payloads):
            given = values[number * BATCH : (number + 1) * BATCH]
            stacked = {name: stack([np.asarray(each[name]) for each in given]) for name in names}
            path = tmp_path / f"{layout}{number}"
            path.with_suffix(".h5").write_bytes(message)
            np.savez(path.with_suffix(".npz"), **stacked)  # type: ignore[arg-type]
            cases.append(
                {
                    "message": str(path.with_suffix(".h5")),
                    "wanted": str(path.with_suffix(".npz")),
                    "prefix": prefix,
                    "dtypes": {name: array.dtype.str for name, array in stacked.items()},
                }
            )
    assert len(cases) == 4
    answer = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(cases), capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert answer.stdout == "ok\n", answer.stderr


def codec_of(name: str, level: int = 3) -> Codec:
    config = HDF5BinarySerializerConfig.model_validate(
        {"type": "HDF5BinarySerializer", "compression": name, "compression_level": level}
    )
    codec = open_codec(config)
    assert codec is not None
    return codec


def packed(codec: Codec, chunk: Array, filters: tuple[Filter, ...], parts: int = 1) -> bytes:
    """Return what the pieces of a codec make of a chunk."""
    result = b""
    for piece in codec.pieces(chunk.nbytes, filters, parts):
        room = np.full(piece.bound + 8, 0xAA, np.uint8)
        size = piece.pack(address_of(chunk), address_of(room))
        assert 0 < size <= piece.bound
        # Nothing is written behind the room.
        assert (room[piece.bound :] == 0xAA).all()
        result += room[:size].tobytes()
    return result


def filters_of(codec: Codec, chunk: Array) -> tuple[h5py.Dataset, tuple[Filter, ...]]:
    file = h5py.File(io.BytesIO(), "w")
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk(chunk.shape)
    for each in codec.filters(chunk.dtype):
        creation.set_filter(each.code, h5py.h5z.FLAG_OPTIONAL, each.values)
    space = h5py.h5s.create_simple(chunk.shape)
    kind = h5py.h5t.py_create(chunk.dtype)
    dataset = h5py.Dataset(h5py.h5d.create(file.id, b"x", kind, space, creation))
    done = dataset.id.get_create_plist()
    found = [done.get_filter(number) for number in range(done.get_nfilters())]
    return dataset, tuple(Filter(code, tuple(numbers)) for code, _, numbers, _ in found)


@pytest.mark.parametrize("kind", ["noise", "zeros", "one value", "nan", "incompressible"])
@pytest.mark.parametrize("codec", CODECS)
def test_chunks_of_any_content_come_back(codec: str, kind: str) -> None:
    """Blosc2 treats equal values in its own way; what does not compress must still fit."""
    generator = np.random.default_rng(0)
    shape = (300, 500)
    chunk = {
        "noise": np.rint(generator.normal(0, 3, shape)).astype(np.float32),
        "zeros": np.zeros(shape, np.float32),
        "one value": np.full(shape, 7.5, np.float32),
        "nan": np.full(shape, np.nan, np.float32),
        "incompressible": generator.integers(0, 1 << 30, shape, np.int32).view(np.float32),
    }[kind]
    if codec == "zfp" and kind in ("nan", "incompressible"):
        pytest.skip("zfp knows no values that are not finite, and is not exact")
    opened = codec_of(codec)
    dataset, filters = filters_of(opened, chunk)
    dataset.id.write_direct_chunk((0, 0), packed(opened, chunk, filters))
    assert np.array_equal(dataset[...], chunk, equal_nan=True)


@pytest.mark.parametrize("codec", ["bitshuffle_with_lz4", "bitshuffle_with_zstd"])
@pytest.mark.parametrize("dtype", ["<u2", "<f4", "|S3"])
def test_pieces_of_bitshuffle_are_the_whole(codec: str, dtype: str) -> None:
    # Not a multiple of anything.
    chunk = np.random.default_rng(0).integers(0, 99, 1_000_003).astype(dtype)
    opened = codec_of(codec)
    _, filters = filters_of(opened, chunk)
    for parts in (2, 3, 16):
        assert len(opened.pieces(chunk.nbytes, filters, parts)) > 1
        assert packed(opened, chunk, filters, parts) == packed(opened, chunk, filters)


@pytest.mark.parametrize("codec", ["blosc2_with_lz4", "blosc2_with_zstd"])
@pytest.mark.parametrize("content", [0, 5, 1 << 30])
def test_blosc2_is_the_same_with_and_without_its_own_interface(
    codec: str, content: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = np.random.default_rng(0).integers(0, content + 1, (200, 300), np.int32)
    opened = codec_of(codec)
    _, filters = filters_of(opened, chunk)
    fast = packed(opened, chunk, filters)
    monkeypatch.setattr(blosc2, "KNOWN_VERSIONS", ())
    assert packed(opened, chunk, filters) == fast
    (piece,) = opened.pieces(chunk.nbytes, filters)
    assert not isinstance(piece._compress, blosc2._Contexts)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [0, 1, 255, 256, 1000])
@pytest.mark.parametrize("element_bytes", [2, 3, 8, 255, 300])
def test_shuffling_is_that_of_hdf5(size: int, element_bytes: int) -> None:
    given = np.random.default_rng(0).integers(0, 256, size * element_bytes + 1, np.uint8)
    whole = given[:-1].reshape(size, element_bytes).T.reshape(-1)
    for shuffle in (deflate.shuffle, deflate._find_shuffler()):
        room = np.zeros(len(given), np.uint8)
        shuffle(element_bytes, len(given), address_of(given), address_of(room))
        assert room[:-1].tobytes() == whole.tobytes()
        assert room[-1] == given[-1]


def test_gzip_without_the_fast_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(deflate, "plugin", fail)
    assert deflate._find_shuffler() is deflate.shuffle


def test_what_does_not_become_smaller_is_stored_as_it_is() -> None:
    generator = np.random.default_rng(0)
    values: list[Given] = [
        {"noise": generator.integers(0, 1 << 62, 1000), "even": np.zeros(1000), "one": 5.0}
        for _ in range(4)
    ]
    parameters = parameters_of(
        values[0], 4, type="HDF5BinarySerializer", compression="gzip_with_shuffle"
    )
    (message,) = sent(parameters, events(values)).payloads
    with h5py.File(io.BytesIO(message)) as file:
        masks = {
            name: [file[name].id.get_chunk_info(row).filter_mask for row in range(4)]
            for name in values[0]
        }
        assert masks == {"noise": [3] * 4, "even": [0] * 4, "one": [3] * 4}
        for row, each in enumerate(values):
            assert np.array_equal(file["noise"][row], np.asarray(each["noise"]))
        assert file["one"][...].tolist() == [5.0] * 4
    assert len(message) < 4 * 8000 + 4 * 100 + 20_000


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_compressed_while_others_are_sent(codec: str, threads: int) -> None:
    """Two batches take turns, as in a run: what is in one must not come out of the other."""
    parameters = parameters_of(
        ["frame"], 5, type="HDF5BinarySerializer", compression=codec, compression_threads=threads
    )
    serializer = open_serializer(parameters, PLACE)
    generator = np.random.default_rng(0)
    frames = [np.rint(generator.normal(0, 9, (64, 128))).astype(np.float32) for _ in range(40)]
    try:
        made: list[bytes] = []
        batches: list[Batch] = []
        for index, event in enumerate(events([{"frame": each} for each in frames])):
            if index % 5 == 0:
                if len(batches) < 2:
                    batches.append(serializer.new_batch(form_of(frames[0]), 5))
                batch = batches[index // 5 % 2]
                batch.clear()
                batch.lasting = index >= 20
            # Memory that is not to be held is used again at once.
            frame = frames[index] if batch.lasting else frames[index].copy()
            assert batch.add(event, {"frame": frame})
            if not batch.lasting:
                frame.fill(-1)
            if batch.is_full:
                made += [message.tobytes() for message in serializer.messages(batch)]
    finally:
        serializer.close()
    found = [row for each in made for row in h5py.File(io.BytesIO(each))["frame"][...]]
    assert len(found) == 40
    for row, frame in zip(found, frames, strict=True):
        assert np.allclose(row, frame, atol=0 if codec != "zfp" else 1)


def test_a_batch_that_is_never_sent_holds_nobody_up() -> None:
    parameters = parameters_of(
        ["frame"], 8, type="HDF5BinarySerializer", compression="zstd", compression_threads=2
    )
    serializer = open_serializer(parameters, PLACE)
    try:
        frame = np.zeros((256, 256), np.uint16)
        batch = serializer.new_batch(form_of(frame), 8)
        for _ in range(50):
            batch.clear()
            for event in events([{"frame": frame}] * 7):
                assert batch.add(event, {"frame": frame})
    finally:
        serializer.close()


def form_of(frame: Array) -> Form:
    column = Column("frame", frame.dtype, frame.shape)
    return Form((column,), ("frame",), 3, "tst000124", with_masks=False)


class Failing:
    """A codec that does not work."""

    def suits(self, dtype: Any, shape: Any) -> bool:
        return True

    def filters(self, dtype: Any) -> list[Filter]:
        return [Filter(1, (3,))]

    def pieces(self, chunk_bytes: int, filters: Any, parts: int = 1) -> list["Failing"]:
        return [self]

    bound = 1 << 16

    def pack(self, source: int, into: int) -> int:
        raise RuntimeError("the codec does not work")


def test_a_codec_that_fails_is_told_and_hangs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lclstream.streamer.serializers.hdf5.open_codec", lambda config: Failing())
    parameters = parameters_of(["x"], 4, type="HDF5BinarySerializer", compression="gzip")
    with pytest.raises(RuntimeError, match=r"^the codec does not work$"):
        sent(parameters, events([{"x": np.zeros(1000)}] * 40))


@pytest.mark.parametrize("codec", CODECS[2:])
def test_missing_library_is_named(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise ImportError(f"{name} is not installed")

    reason = rf"^compression '{codec}' cannot be used: "
    for module in ("bitshuffle", "zfp", "zstandard"):
        place = f"lclstream.streamer.serializers.codecs.{module}"
        __import__(place)
        monkeypatch.setattr(f"{place}.plugin", missing)
        monkeypatch.setattr(f"{place}.extension", missing, raising=False)
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(InvalidConfigError, match=reason):
        codec_of(codec)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(InvalidConfigError, match=reason + ".*hdf5plugin"):
        codec_of(codec)
    monkeypatch.undo()
    monkeypatch.setattr("h5py.h5z.filter_avail", lambda code: False)
    with pytest.raises(InvalidConfigError, match=reason + r"hdf5plugin has no filter 320\d\d$"):
        codec_of(codec)


# Nothing is loaded yet but what the serializer loads itself.
WRITER = """
import sys
import numpy as np
from tests.streamer.serializing import events, parameters_of, sent
assert "hdf5plugin" not in sys.modules
values = [{"x": np.arange(1000.0)}] * 3
parameters = parameters_of(["x"], 2, type="HDF5BinarySerializer", compression=sys.argv[1])
print(len(sent(parameters, events(values)).payloads))
"""


@pytest.mark.parametrize("codec", ["bitshuffle_with_lz4", "blosc2_with_lz4", "zstd", "zfp"])
def test_codecs_load_all_that_they_need(codec: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", WRITER, codec],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert answer.stdout == "2\n", answer


def test_libraries_that_are_not_there() -> None:
    with pytest.raises(OSError, match=r"^hdf5plugin has no filter 'nothing'$"):
        libraries.plugin("nothing")
    with pytest.raises(ImportError, match=r"^lclstream_nothing is not installed$"):
        libraries.extension("lclstream_nothing")


@pytest.mark.parametrize(("size_bytes", "most"), [(4 << 20, 3), (1 << 20, 3), (1 << 18, 9)])
def test_no_more_is_ahead_of_the_threads_than_they_do_soon(size_bytes: int, most: int) -> None:
    workers = Workers(2)
    hold, submitted = threading.Event(), []
    started, is_stuck = threading.Semaphore(0), threading.Event()

    def task() -> list[int]:
        started.release()
        assert hold.wait(30)
        return []

    def submit_many() -> None:
        for number in range(most + 1):
            if number == most:
                is_stuck.set()
            workers.submit(task, size_bytes)
            submitted.append(number)

    other = threading.Thread(target=submit_many)
    other.start()
    try:
        assert started.acquire(timeout=30)
        assert started.acquire(timeout=30)
        assert is_stuck.wait(30)
        other.join(0.1)
        assert other.is_alive()
        assert submitted == list(range(most))
        hold.set()
        other.join(30)
        assert len(submitted) == most + 1
    finally:
        hold.set()
        other.join()
        workers.close()


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def cores(cgroups: Path, membership: str = "0::/\n", **environment: str) -> int:
    return cores_of_rank(environment, cgroups, membership)


def test_cores_are_those_of_the_rank(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert cores(cgroups) == 16
    assert cores(cgroups, SLURM_CPUS_PER_TASK="4") == 4
    assert cores(cgroups, SLURM_CPUS_PER_TASK="99") == 16
    assert cores(cgroups, SLURM_CPUS_PER_TASK="") == 16
    assert cores(cgroups, MPI_LOCALNRANKS="3") == 5
    assert cores(cgroups, OMPI_COMM_WORLD_LOCAL_SIZE="99") == 1
    # A launcher that binds its ranks has divided the machine already.
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert cores(cgroups, MPI_LOCALNRANKS="4") == 16
    # SLURM may bind a job to a part of the machine, and none of its ranks to less.
    assert cores(cgroups, SLURM_CPUS_ON_NODE="16", SLURM_STEP_TASKS_PER_NODE="4(x2),3") == 4
    assert cores(cgroups, SLURM_CPUS_ON_NODE="32", SLURM_STEP_TASKS_PER_NODE="2(x2)") == 16


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b\n", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, 16),
        ("0::/a\n", {"a/cpu.max": "nonsense"}, 16),
        ("0::/a\n", {"b/cpu.max": "100000 100000"}, 16),
        (
            "5:cpu,cpuacct:/x\n3:memory:/y\n",
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
def test_limits_of_control_groups_hold(
    cgroups: Path,
    monkeypatch: pytest.MonkeyPatch,
    membership: str,
    files: dict[str, str],
    expected: int,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    for name, content in files.items():
        path = cgroups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert cores(cgroups, membership) == expected


def test_cores_of_this_process() -> None:
    assert cores_of_rank() >= 1


@pytest.mark.parametrize("dtype", ["<i4", "<i8", "<f4", "<f8"])
@pytest.mark.parametrize("shape", [(1, 300), (1, 2, 16, 33), (3, 5, 7, 4)])
def test_zfp_packs_what_its_filter_packs(dtype: str, shape: tuple[int, ...]) -> None:
    chunk = np.random.default_rng(0).normal(0, 1000, shape).astype(dtype)
    codec = codec_of("zfp")
    dataset, filters = filters_of(codec, chunk)
    dataset[...] = chunk
    dataset.file.flush()
    _, theirs = dataset.id.read_direct_chunk((0,) * len(shape))
    assert packed(codec, chunk, filters) == theirs
