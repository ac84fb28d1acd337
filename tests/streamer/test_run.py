"""The streamer as a process: alone, under mpiexec, in a job of a transfer, and when things fail."""

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynng
import pytest
import zmq
from tests.streamer.conftest import Start, wait_until

from lclstream.streamer.config import SimulatedDetectorEventSourceConfig, parse_parameters
from lclstream.streamer.sources.simulated import expected_event

pytestmark = pytest.mark.timeout(120)

EXIT_S = 60.0
needs_mpiexec = pytest.mark.skipif(
    shutil.which("mpiexec") is None and not (Path(sys.executable).parent / "mpiexec").exists(),
    reason="no mpiexec",
)


def listening(pull: pynng.Pull0) -> str:
    pull.listen("tcp://127.0.0.1:0")
    return f"tcp://{pull.listeners[0].local_address}"


def pushing(document: dict[str, Any], url: str, **options: Any) -> dict[str, Any]:
    handler = {"type": "BinaryDataStreamingDataHandler", "urls": [url], "role": "client"}
    return document | {"data_handlers": [handler | {"library": "nng"} | options]}


def writing(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    handler = {"type": "BinaryFileWritingDataHandler", "write_directory": str(folder)}
    return document | {"data_handlers": [handler]}


def last_line(text: str) -> dict[str, Any]:
    return dict(json.loads(text.strip().splitlines()[-1]))


def until_ended(pull: pynng.Pull0, process: subprocess.Popen[str]) -> list[bytes]:
    """Return all that a process sends."""
    pull.recv_timeout = 200
    messages: list[bytes] = []
    while True:
        has_ended = process.poll() is not None
        try:
            messages.append(pull.recv())
        except pynng.Timeout:
            if has_ended:
                return messages


def index_of(message: bytes) -> list[int]:
    with h5py.File(io.BytesIO(message)) as file:
        return list(file["lclstream/event_index"][...].tolist())


def check_events(document: dict[str, Any], messages: list[bytes]) -> None:
    """Compare every event with the one that it must be; each must be there once."""
    config = parse_parameters(document).event_source
    assert isinstance(config, SimulatedDetectorEventSourceConfig)
    seen: list[int] = []
    for message in messages:
        with h5py.File(io.BytesIO(message)) as file:
            for row, index in enumerate(file["lclstream/event_index"][...].tolist()):
                wanted = expected_event(config, index, "tst000124", 3)
                frame = np.asarray(wanted.read("jungfrau", "raw.raw"))
                assert np.array_equal(file["frame"][row], frame)
                assert file["timestamp"][row] == wanted.timestamp
                seen.append(index)
    assert sorted(seen) == list(range(config.events))


@needs_mpiexec
def test_three_ranks_deliver_every_event_once(document: dict[str, Any], start: Start) -> None:
    document["event_source"] |= {"events": 100, "shape": [64, 64]}
    with pynng.Pull0(recv_timeout=30_000) as pull:
        process = start(pushing(document, listening(pull)), ranks=3)
        messages: list[bytes] = []
        while sum(len(index_of(message)) for message in messages) < 100:
            messages.append(pull.recv())
        _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 0, log
    check_events(document, messages)
    ranks = set()
    for message in messages:
        with h5py.File(io.BytesIO(message)) as file:
            ranks.add((int(file["lclstream"].attrs["rank"]), int(file["lclstream"].attrs["ranks"])))
    assert ranks == {(0, 3), (1, 3), (2, 3)}


def test_zmq_delivers_the_last_message_too(document: dict[str, Any], start: Start) -> None:
    context = zmq.Context()
    with context.socket(zmq.PULL) as pull:
        pull.set(zmq.RCVTIMEO, 30_000)
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        process = start(pushing(document, f"tcp://127.0.0.1:{port}", library="zmq"))
        # The receiver reads nothing until the sender has ended.
        _, log = process.communicate(timeout=EXIT_S)
        assert process.returncode == 0, log
        messages = [pull.recv() for _ in range(7)]
    context.term()
    check_events(document, messages)


def test_files_hold_every_event(document: dict[str, Any], start: Start, tmp_path: Path) -> None:
    process = start(writing(document, tmp_path / "out"), "-n", "8")
    _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 0, log
    end = last_line(log)
    assert (end["event"], end["events"], end["messages"]) == ("rank_finished", 8, 3)
    files = sorted((tmp_path / "out").glob("*.h5"))
    assert [index_of(path.read_bytes()) for path in files] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_incomplete_events_are_skipped_one_by_one(document: dict[str, Any], start: Start) -> None:
    document["event_source"] |= {"events": 50, "missing_frames": 0.3}
    document["skip_incomplete_events"] = True
    _, log = start(document).communicate(timeout=EXIT_S)
    end = last_line(log)
    assert end["events_read"] == 50
    assert 5 < end["events_skipped"] == 50 - end["events"]
    assert end["events_skipped_without_frame"] == end["events_skipped"]


def test_sigterm_delivers_what_was_read(
    document: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    document["event_source"] |= {"events": 100_000, "rate_hz": 200}
    folder = tmp_path / "out"
    process = start(writing(document, folder))
    wait_until(lambda: len(list(folder.glob("*.h5"))) > 2)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 128 + signal.SIGTERM, log
    end = last_line(log)
    assert end["ended_early"] == "SIGTERM"
    numbers = [index for path in folder.glob("*.h5") for index in index_of(path.read_bytes())]
    assert sorted(numbers) == list(range(end["events"]))
    assert json.loads((folder / "r0.manifest.json").read_text())["complete"]


@pytest.mark.parametrize("library", ["nng", "zmq"])
def test_nobody_listening_is_an_error(document: dict[str, Any], start: Start, library: str) -> None:
    # Port 1 is never served.
    changed = pushing(document, "tcp://127.0.0.1:1", library=library, connect_timeout_s=0.3)
    process = start(changed)
    _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 1
    assert "messages not delivered: no connection within 0.3 s: tcp://127.0.0.1:1" in log
    assert "Traceback" not in log


def test_a_receiver_that_takes_nothing_is_an_error(document: dict[str, Any], start: Start) -> None:
    document["event_source"] |= {"events": 300, "shape": [512, 512]}
    with pynng.Pull0(recv_buffer_size=1) as pull:
        process = start(pushing(document, listening(pull), send_timeout_s=1, flush_timeout_s=1))
        _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 1
    assert "not delivered: " in log
    assert "Traceback" not in log


def test_a_receiver_that_goes_away_is_an_error(document: dict[str, Any], start: Start) -> None:
    document["event_source"] |= {"events": 100_000, "rate_hz": 300}
    with pynng.Pull0(recv_timeout=30_000) as pull:
        url = listening(pull)
        process = start(pushing(document, url, connect_timeout_s=0.5))
        pull.recv()
    _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 1
    assert "not delivered: " in log


@needs_mpiexec
def test_a_rank_that_fails_does_not_hold_up_the_others(
    document: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "r1_0.h5").touch()
    process = start(writing(document, folder), ranks=3)
    _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode not in (0, None)
    assert "holds 1 file of an earlier run, e.g. r1_0.h5" in log
    assert (folder / "r1_0.h5").read_bytes() == b""


def test_what_was_read_before_a_fault_is_delivered(
    document: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    source = tmp_path / "damaged.h5"
    with h5py.File(source, "w") as file:
        data = np.random.default_rng(1).integers(0, 9, (6, 50))
        made = file.create_dataset("d", data=data, chunks=(1, 50), compression="gzip")
        place = made.id.get_chunk_info(4).byte_offset
    content = bytearray(source.read_bytes())
    content[place : place + 20] = b"\xff" * 20
    source.write_bytes(content)
    document["source_identifier"] = str(source)
    document["event_source"] = {"type": "Hdf5EventSource"}
    document["data_sources"] = {"d": {"type": "EventValue", "name": "/d"}}
    with pynng.Pull0(recv_timeout=30_000) as pull:
        both = [
            *pushing(document, listening(pull))["data_handlers"],
            *writing(document, tmp_path / "out")["data_handlers"],
        ]
        process = start(document | {"data_handlers": both})
        received = [index_of(pull.recv()) for _ in range(2)]
        _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 1
    assert f"lclstream: cannot read event 4 of /d in {source}: " in log
    files = sorted((tmp_path / "out").glob("*.h5"))
    assert [index_of(path.read_bytes()) for path in files] == received == [[0, 1, 2], [3]]
    assert not json.loads((tmp_path / "out" / "r0.manifest.json").read_text())["complete"]


def test_what_one_handler_loses_the_others_deliver(document: dict[str, Any], start: Start) -> None:
    document["event_source"] |= {"events": 60}
    with pynng.Pull0(recv_timeout=30_000) as pull:
        # The message that fails has gone to the one before already.
        both = [
            *pushing(document, listening(pull))["data_handlers"],
            *pushing(document, "tcp://127.0.0.1:1", connect_timeout_s=0.3)["data_handlers"],
        ]
        process = start(document | {"data_handlers": both})
        received = [index for message in until_ended(pull, process) for index in index_of(message)]
        _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 1
    # All that was read until then.
    assert received
    assert received == list(range(len(received)))
    assert "messages not delivered: no connection within 0.3 s" in log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("data_serializer"), "data_serializer: is required"),
        (
            lambda document: document["data_sources"]["frame"].update(field="raw.rav"),
            "'jungfrau' has no field 'raw.rav' (did you mean 'raw.raw'?)",
        ),
        (
            lambda document: document["event_source"].update(type="Psana2EventSource"),
            "unknown field",
        ),
    ],
)
def test_mistakes_end_with_exit_code_2(
    document: dict[str, Any], start: Start, change: Callable[[Any], None], message: str
) -> None:
    changed = pushing(document, "tcp://127.0.0.1:1")
    change(changed)
    process = start(changed)
    _, log = process.communicate(timeout=EXIT_S)
    assert process.returncode == 2
    assert message in log
    assert "Traceback" not in log
