"""Processes of the measurement of whole ranks: ranks, and those who receive from them.

As a module it is one of them: see `main`.
"""

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.buffer.measure import BrokenMeasurementError, memory_bytes

FRAMES, SMALL = "frames of 4 MB", "events of 1 kB"
FRAME_SHAPE = (2, 512, 1024)
MEMORY_BATCH = 10
RECEIVER_MESSAGES = 4
READ_BYTES = 1 << 20
PULL_HANDSHAKE = b"\x00SP\x00\x00\x51\x00\x00"
MODULE = "benchmarks.streamer.ranks"


def document(kind: str, size: int, count: int, library: str, url: str) -> dict[str, Any]:
    """Return the configuration of a rank."""
    # The same array again and again: what is measured is the way, not the making.
    data = {"type": "GenericRandomNumpyArray", "always_random": False}
    if kind == SMALL:
        data |= {"array_shape": [512], "array_dtype": "uint16"}
    else:
        data |= {"array_shape": list(FRAME_SHAPE), "array_dtype": "float32"}
    push = {"type": "BinaryDataStreamingDataHandler", "library": library, "urls": [url]}
    return {
        "event_source": {"type": "InternalEventSource", "number_of_events_to_generate": count},
        "data_sources": {
            "data": data,
            "timestamp": {"type": "Psana2Timestamp"},
            "energy": {"type": "FloatValue", "value": 9500.0},
        },
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": size},
        "data_serializer": {"type": "HDF5BinarySerializer"},
        "data_handlers": [push],
    }


def stream(parameters_document: dict[str, Any]) -> None:
    """Be a rank, in this process.

    Raises:
        BrokenMeasurementError: not all events were sent.
    """
    from lclstream.streamer.config import parse_parameters
    from lclstream.streamer.pipeline import Pipeline
    from lclstream.streamer.progress import Progress
    from lclstream.streamer.rank import place_from_environment
    from lclstream.streamer.stopping import StopRequest

    place = place_from_environment()
    progress = Progress(place)
    with StopRequest() as stop:
        Pipeline(parse_parameters(parameters_document), place, progress, stop).run()
    wanted = len(
        range(
            place.rank,
            parameters_document["event_source"]["number_of_events_to_generate"],
            place.size,
        )
    )
    if progress.sent.events != wanted:
        raise BrokenMeasurementError(f"{progress.sent.events} of {wanted} events were sent")


@contextmanager
def receiver(library: str) -> Iterator[str]:
    """Start a process that takes messages and throws them away; yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, "receive", library], stdout=subprocess.PIPE, text=True
    )
    try:
        yield line_of(process).strip()
    finally:
        process.kill()
        process.communicate()


def receive(library: str) -> None:
    """Take messages until the process is killed."""
    {"nng": _receive_nng, "zmq": _receive_zmq}[library]()


def _receive_nng() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_discard, args=(connection,), daemon=True).start()


def _receive_zmq() -> None:
    import zmq

    context = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.rcvhwm = RECEIVER_MESSAGES
    say(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
    while True:
        pull.recv(copy=False)


def _discard(connection: socket.socket) -> None:
    """Be an NNG Pull0 that looks at nothing."""
    room = bytearray(READ_BYTES)
    with connection:
        connection.sendall(PULL_HANDSHAKE)
        while connection.recv_into(room):
            pass


def say(text: str) -> None:
    """Tell who has started this process."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def line_of(process: "subprocess.Popen[str]") -> str:
    """Return what a process says next.

    Raises:
        BrokenMeasurementError: it has ended.
    """
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise BrokenMeasurementError(f"a process has failed: {process.args!r}")
    return line


def rank(order: str) -> None:
    """Be a rank: say that it is ready, wait, stream, tell its processor time."""
    made = json.loads(order)
    # What is loaded and made only once is not counted.
    source = {**made["event_source"], "number_of_events_to_generate": 100}
    stream({**made, "event_source": source})
    say("ready")
    sys.stdin.readline()
    start = time.process_time()
    stream(made)
    say(str(time.process_time() - start))


def memory(url: str) -> None:
    """Tell the peak of a run with frames that are new every time, each in memory of its own."""

    def run(shape: tuple[int, ...], count: int) -> None:
        made = document(FRAMES, MEMORY_BATCH, count, "nng", url)
        made["data_sources"]["data"] |= {"always_random": True, "array_shape": list(shape)}
        stream(made)

    # What is loaded and made only once is not counted.
    run((1, 64, 64), 100)
    gc.collect()
    before = memory_bytes([os.getpid()], "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run(FRAME_SHAPE, 8 * MEMORY_BATCH)
    peak = memory_bytes([os.getpid()], "VmHWM") - before
    frame_bytes = int(np.prod(FRAME_SHAPE)) * 4
    say(str(peak / ((MEMORY_BATCH + 1) * frame_bytes)))


def main(what: str, argument: str) -> None:
    """Be a process of the measurement."""
    {"receive": receive, "rank": rank, "memory": memory}[what](argument)


if __name__ == "__main__":
    main(*sys.argv[1:])
