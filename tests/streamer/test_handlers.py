"""Handlers: files are whole and never replaced, sockets deliver or say what they did not."""

import json
from collections.abc import Iterator
from pathlib import Path

import pynng
import pytest
import zmq
from zmq.utils.garbage import gc as collector

from lclstream.core.errors import DeliveryError, InvalidConfigError, UnavailableError
from lclstream.core.ledger import digest64
from lclstream.streamer.config import (
    BinaryDataStreamingDataHandlerConfig,
    BinaryFileWritingDataHandlerConfig,
)
from lclstream.streamer.handlers import Handler, open_handler
from lclstream.streamer.handlers.nng import NngPushHandler
from lclstream.streamer.handlers.sockets import urls_of_rank
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place

Socket = BinaryDataStreamingDataHandlerConfig
Files = BinaryFileWritingDataHandlerConfig
ONLY = Place(0, 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(config: Files, payloads: list[bytes], place: Place = ONLY) -> None:
    handler = open_handler(config, place)
    for payload in payloads:
        handler.send(Message((memoryview(payload),), 2))
    handler.close()
    handler.close()


@pytest.mark.parametrize(("prefix", "stem"), [("", ""), ("run", "run_"), ("run_", "run_")])
def test_files_have_the_names_of_upstream(tmp_path: Path, prefix: str, stem: str) -> None:
    folder = tmp_path / "new" / "folder"
    write(Files(file_prefix=prefix, write_directory=str(folder)), [b"one", b"two"], Place(2, 3))
    assert names(folder) == [f"{stem}r2.manifest.json", f"{stem}r2_0.h5", f"{stem}r2_1.h5"]
    assert (folder / f"{stem}r2_1.h5").read_bytes() == b"two"
    manifest = json.loads((folder / f"{stem}r2.manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["files"][1] == {
        "file": f"{stem}r2_1.h5", "bytes": 3, "events": 2, "xxh3_64": f"{digest64(b'two'):016x}",
    }  # fmt: skip


def test_files_of_an_earlier_run_are_not_replaced(tmp_path: Path) -> None:
    config = Files(write_directory=str(tmp_path))
    write(config, [b"one", b"two"])
    # Other ranks, prefixes and suffixes are not in the way.
    write(config, [b"three"], Place(1, 2))
    write(config.model_copy(update={"file_prefix": "x"}), [b"four"])
    message = r" holds 3 files of an earlier run, e\.g\. r0\.manifest\.json: choose another"
    with pytest.raises(InvalidConfigError, match=message):
        open_handler(config, Place(0, 2))
    assert (tmp_path / "r0_1.h5").read_bytes() == b"two"


def test_overwriting_leaves_nothing_stale(tmp_path: Path) -> None:
    config = Files(write_directory=str(tmp_path), overwrite=True)
    write(config, [b"one", b"two"])
    write(config, [b"three"], Place(3, 4))
    write(config, [b"four"])
    assert names(tmp_path) == ["r0.manifest.json", "r0_0.h5"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    handler = open_handler(Files(write_directory=str(tmp_path)), ONLY)
    (tmp_path / "r0_0.h5").write_bytes(b"precious")
    with pytest.raises(DeliveryError, match=r"r0_0\.h5 exists already$"):
        handler.send(Message((memoryview(b"new"),), 1))
    handler.abort()
    assert (tmp_path / "r0_0.h5").read_bytes() == b"precious"
    assert names(tmp_path) == ["r0.manifest.json", "r0_0.h5"]
    assert not json.loads((tmp_path / "r0.manifest.json").read_text())["complete"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfigError, match=r"^cannot write into .*/file/x: "):
        open_handler(Files(write_directory=str(tmp_path / "file" / "x")), ONLY)


def test_nng_client_delivers_everything() -> None:
    with pynng.Pull0(recv_timeout=10_000) as pull:
        pull.listen("tcp://127.0.0.1:0")
        url = str(pull.listeners[0].local_address)
        handler = open_handler(Socket(urls=[f"tcp://{url}"], library="nng"), ONLY)
        for number in range(50):
            handler.send(Message((memoryview(b"%d" % number),), 1))
        got = [pull.recv() for _ in range(50)]
        handler.close()
    assert got == [b"%d" % number for number in range(50)]


def test_nng_server_serves_who_dials() -> None:
    handler = open_handler(Socket(urls=["tcp://127.0.0.1:0"], role="server", library="nng"), ONLY)
    assert isinstance(handler, NngPushHandler)
    with pynng.Pull0(recv_timeout=10_000) as pull:
        pull.dial(handler.urls[0], block=False)
        handler.send(Message((memoryview(b"x"),), 1))
        assert pull.recv() == b"x"
        handler.close()


@pytest.fixture(autouse=True)
def zmq_collector() -> Iterator[None]:
    """End the thread that pyzmq keeps for the whole process."""
    yield
    collector.stop()


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_zmq_client_delivers_everything(size: int) -> None:
    context = zmq.Context()
    with context.socket(zmq.PULL) as pull:
        pull.set(zmq.RCVTIMEO, 10_000)
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        handler = open_handler(Socket(urls=[f"tcp://127.0.0.1:{port}"], library="zmq"), ONLY)
        memory = bytearray(size)
        got = []
        for number in range(6):
            memory[:] = bytes([number]) * size
            # The memory is used again at once: what was sent must not change with it.
            handler.send(Message((memoryview(memory),), 1))
        handler.close()
        got = [pull.recv() for _ in range(6)]
    context.term()
    assert got == [bytes([number]) * size for number in range(6)]


@pytest.mark.parametrize("library", ["nng", "zmq"])
def test_nobody_listening_is_an_error(library: str) -> None:
    # Port 1 is never served.
    config = Socket.model_validate(
        {"urls": ["tcp://127.0.0.1:1"], "library": library, "connect_timeout_s": 0.3}
    )
    handler = open_handler(config, ONLY)
    with pytest.raises(
        UnavailableError, match=r"^no connection within 0\.3 s: tcp://127\.0\.0\.1:1"
    ):
        handler.send(Message((memoryview(b"x"),), 1))
    handler.abort()


@pytest.mark.parametrize("library", ["nng", "zmq"])
def test_an_occupied_port_is_named(library: str) -> None:
    with pynng.Pull0() as pull:
        pull.listen("tcp://127.0.0.1:0")
        url = f"tcp://{pull.listeners[0].local_address}"
        config = Socket.model_validate({"urls": [url], "library": library, "role": "server"})
        with pytest.raises(InvalidConfigError, match=rf"^cannot listen on {url}: Address"):
            open_handler(config, ONLY)


def send_many(handler: Handler, count: int) -> None:
    for _ in range(count):
        handler.send(Message((memoryview(b"y"),), 1))


def test_a_zmq_receiver_that_goes_away_is_noticed() -> None:
    context = zmq.Context()
    with context.socket(zmq.PULL) as pull:
        pull.set(zmq.RCVTIMEO, 10_000)
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        config = Socket(urls=[f"tcp://127.0.0.1:{port}"], connect_timeout_s=1, send_timeout_s=1)
        handler = open_handler(config, ONLY)
        handler.send(Message((memoryview(b"x"),), 1))
        assert pull.recv() == b"x"
    context.term()
    with pytest.raises((DeliveryError, UnavailableError)):
        send_many(handler, 100)
    handler.abort()


@pytest.mark.parametrize(
    ("place", "urls"),
    [
        (Place(0, 1), ["a", "b", "c"]),
        (Place(1, 2), ["b"]),
        (Place(4, 6), ["b"]),
    ],
)
def test_ranks_may_have_urls_of_their_own(place: Place, urls: list[str]) -> None:
    config = Socket.model_construct(urls=["a", "b", "c"], distribute=True)
    assert urls_of_rank(config, place) == urls
    assert urls_of_rank(config.model_copy(update={"distribute": False}), place) == ["a", "b", "c"]
