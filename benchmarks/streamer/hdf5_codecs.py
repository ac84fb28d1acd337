"""Compression: ours beside the bare library, and beside HDF5's filters as LCLStreamer uses them."""

import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from benchmarks.buffer.rows import Goal, Row, row
from benchmarks.streamer.options import Options
from benchmarks.streamer.ours import Array, Messages, frame_event
from benchmarks.streamer.turns import Case, costs
from benchmarks.streamer.upstream import message

from lclstream.streamer.serializers.codecs.cores import cores_of_rank
from lclstream.streamer.serializers.codecs.libraries import one_thread_each

# Compression -> level.
CODECS = {
    "gzip": 3,
    "gzip_with_shuffle": 3,
    "bitshuffle_with_lz4": 0,
    "bitshuffle_with_zstd": 3,
    "blosc2_with_lz4": 5,
    "blosc2_with_zstd": 1,
    "zstd": 3,
    "zfp": 0,
}
FRAMES = {"uint16": ("uint16", False), "float32": ("float32", False)}
BATCH = 8
MB = 1e6
FILTERS, LIBRARY = "HDF5's filter", "bare library"


def rows(options: Options) -> list[Row]:
    """Return the figures of this part."""
    found: list[Row] = []
    # Libraries that would share their work among threads get one, as each of ours.
    one_thread_each()
    for codec in CODECS:
        for kind, (dtype, whole) in FRAMES.items():
            if codec != "zfp" or dtype == "float32":
                event = frame_event(dtype, whole=whole)
                found += _of_codec(codec, kind, event, options)
    return found


def _of_codec(codec: str, kind: str, event: dict[str, Array], options: Options) -> list[Row]:
    cores = cores_of_rank()
    size_mb = event["frame"].nbytes / MB
    with ExitStack() as stack:
        makers = {}
        for threads in {1, cores}:
            maker = Messages(
                event, BATCH, lasting=True, compression=codec,
                compression_level=CODECS[codec], compression_threads=threads,
            )  # fmt: skip
            stack.callback(maker.close)
            makers[threads] = maker
        cases = {
            f"{threads}": Case(work=maker.next, units=BATCH * size_mb)
            for threads, maker in makers.items()
        }
        filters = _filters(codec)
        cases[FILTERS] = Case(work=lambda: message([event], **filters), units=size_mb)
        library = _library(codec, event["frame"])
        if library is not None:
            cases[LIBRARY] = Case(work=_kept(library), units=BATCH * size_mb)
        speeds = {
            name: [1 / each for each in values] for name, values in costs(cases, options).items()
        }
        in_use = [_cores_in_use(makers[cores]) for _ in range(options.repetitions)]
        ratio = BATCH * event["frame"].nbytes / makers[cores].next().nbytes
    name, unit = f"{codec} {CODECS[codec]}, {kind}", "MB/s of CPU"
    made = [
        row(
            f"{name}: {threads} threads",
            unit,
            speeds[f"{threads}"],
            baselines=speeds[LIBRARY if library is not None else FILTERS],
            peer=LIBRARY if library is not None else FILTERS,
            goal=Goal("ratio", ">=", 0.9),
            note=f"compressed to 1/{ratio:.2f}",
        )
        for threads in sorted(makers)
    ]
    if library is not None:
        made.append(
            row(
                f"{name}: 1 threads against {FILTERS}",
                unit,
                speeds["1"],
                baselines=speeds[FILTERS],
                peer=FILTERS,
                goal=Goal("ratio", ">=", 1.0),
            )
        )
    made.append(row(f"{name}: processors in use, {cores} threads", "processors", in_use))
    return made


def _cores_in_use(maker: Messages) -> float:
    """Return how many threads had a processor; other programs take theirs."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(3):
        maker.next()
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


def _kept(library: Callable[[], object]) -> Callable[[], object]:
    """Return what compresses as many frames as a batch has, and keeps the results as long."""
    kept: list[object] = []

    def work() -> None:
        results = [library() for _ in range(BATCH)]
        kept[:] = results

    return work


def _library(codec: str, frame: Array) -> Callable[[], object] | None:
    """Return what compresses a frame with nothing but the codec's own package."""
    level = CODECS[codec]
    # They know nothing of the first axis, which is that of the events.
    chunk: Any = np.ascontiguousarray(frame)
    if codec == "gzip":
        return lambda: zlib.compress(chunk, level)
    if codec == "gzip_with_shuffle":
        import numcodecs

        shuffle = numcodecs.Shuffle(elementsize=chunk.itemsize)
        return lambda: zlib.compress(shuffle.encode(chunk), level)
    if codec.startswith("bitshuffle"):
        import bitshuffle

        if codec.endswith("lz4"):
            return lambda: bitshuffle.compress_lz4(chunk, 0)
        return lambda: bitshuffle.compress_zstd(chunk, 0, level)
    if codec.startswith("blosc2"):
        import blosc2

        options: dict[str, Any] = {
            "codec": blosc2.Codec.LZ4 if codec.endswith("lz4") else blosc2.Codec.ZSTD,
            "clevel": level,
            "typesize": chunk.itemsize,
            "filters": [blosc2.Filter.NOFILTER] * 5 + [blosc2.Filter.BITSHUFFLE],
            "filters_meta": [0] * 6,
            "nthreads": 1,
        }
        return lambda: blosc2.compress2(chunk, **options)
    if codec == "zstd":
        from numcodecs.zstd import Zstd

        zstd = Zstd(level=level)
        return lambda: zstd.encode(chunk)
    # Of zfp there is only the filter.
    return None


def _filters(codec: str) -> dict[str, Any]:
    """Return the arguments of h5py for a codec."""
    import hdf5plugin

    level = CODECS[codec]
    if codec.startswith("gzip"):
        shuffle = codec.endswith("shuffle")
        return {"compression": "gzip", "compression_opts": level, "shuffle": shuffle}
    if codec.startswith("bitshuffle"):
        if codec.endswith("lz4"):
            return dict(hdf5plugin.Bitshuffle(nelems=0, cname="lz4"))
        return dict(hdf5plugin.Bitshuffle(nelems=0, cname="zstd", clevel=level))
    if codec.startswith("blosc2"):
        bits = hdf5plugin.Blosc2.BITSHUFFLE
        cname: Any = codec.rpartition("_")[2]
        return dict(hdf5plugin.Blosc2(cname=cname, clevel=level, filters=bits))
    return dict(hdf5plugin.Zstd(clevel=level) if codec == "zstd" else hdf5plugin.Zfp())
