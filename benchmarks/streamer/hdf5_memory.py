"""How much memory it takes to fill one batch while the one before is sent.

As a module it is the process that is measured: `CASE` of those below.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.buffer.measure import BrokenMeasurementError, memory_bytes
from benchmarks.buffer.rows import Goal, Row, row
from benchmarks.streamer.options import Options
from benchmarks.streamer.ours import Array, Messages, frame_event
from benchmarks.streamer.upstream import message

BATCH = 10
BATCHES = 6
UPSTREAM = "h5py"
# Case -> whether the source's arrays may be held, options of the serializer.
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "copied": (False, {}),
    "held": (True, {}),
    "bitshuffle_with_lz4": (False, {"compression": "bitshuffle_with_lz4"}),
    "blosc2_with_zstd": (False, {"compression": "blosc2_with_zstd", "compression_level": 1}),
}


def rows(options: Options) -> list[Row]:
    """Return the figures of this part."""
    repetitions = max(1, options.repetitions // 3)
    found = {case: [_measured(case) for _ in range(repetitions)] for case in (UPSTREAM, *CASES)}
    return [
        row(
            f"peak memory, batch {BATCH} of 4 MB, {case}",
            "batches and a frame",
            values,
            baselines=found[UPSTREAM],
            peer=UPSTREAM,
            goal=None if case == UPSTREAM else Goal("value", "<=", 2.0),
        )
        for case, values in found.items()
    ]


def _measured(case: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.streamer.hdf5_memory", case],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BrokenMeasurementError(f"{case}: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout))


def main(case: str) -> float:
    """Return the peak of one case, in units of a batch and a frame."""
    frame_bytes = frame_event()["frame"].nbytes
    if case == UPSTREAM:
        work = _upstream
    else:
        lasting, options = CASES[case]
        work = _ours(lasting, options)
        # What is loaded only once is not counted.
        _ours(lasting, options, shape=(1, 64, 64))()
    gc.collect()
    before = memory_bytes([os.getpid()], "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work()
    peak = memory_bytes([os.getpid()], "VmHWM") - before
    return peak / (BATCH * frame_bytes + frame_bytes)


def _frames(shape: tuple[int, ...], *, lasting: bool) -> Iterator[Array]:
    """Yield frames that do not compress: in the same memory, unless they may be held."""
    generator, room = np.random.default_rng(0), np.empty(shape, np.float32)
    while True:
        room = np.empty(shape, np.float32) if lasting else room
        yield generator.standard_normal(dtype=np.float32, out=room)


def _ours(
    lasting: bool, options: dict[str, Any], shape: tuple[int, ...] = (2, 512, 1024)
) -> Callable[[], None]:
    def work() -> None:
        frames = _frames(shape, lasting=lasting)
        maker = Messages({"frame": np.zeros(shape, np.float32)}, BATCH, lasting=lasting, **options)
        sink = os.open("/dev/null", os.O_WRONLY)
        for _ in range(BATCHES):
            # The one before is on its way while this one is filled.
            for part in maker.next({"frame": next(frames)} for _ in range(BATCH)).parts:
                os.write(sink, part)
        maker.close()
        os.close(sink)

    return work


def _upstream() -> None:
    frames = _frames((2, 512, 1024), lasting=True)
    sink = os.open("/dev/null", os.O_WRONLY)
    for _ in range(BATCHES):
        os.write(sink, message([{"frame": next(frames)} for _ in range(BATCH)]))
    os.close(sink)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])))
