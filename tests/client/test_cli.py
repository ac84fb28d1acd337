"""`lclstream pull` and `push` as processes."""

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.client.messages import Producer, message

from lclstream.client.receive import Receiver
from lclstream.client.tar import TarWriter
from lclstream.core.errors import InvalidConfigError

LCLSTREAM = [sys.executable, "-c", "import sys, lclstream.cli.main as m; sys.exit(m.main())"]


@contextmanager
def pulling(*arguments: str, environment: dict[str, str] | None = None) -> Iterator["Pulling"]:
    process = subprocess.Popen(
        [*LCLSTREAM, "pull", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | (environment or {}),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


Pulling = subprocess.Popen[bytes]


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {}
        for info in tar.getmembers():
            file = tar.extractfile(info)
            assert file is not None
            found[info.name] = file.read()
    # GNU tar complains about an archive without its trailer.
    check = subprocess.run(["tar", "tf", "-"], input=archive, capture_output=True, check=False)
    assert (check.returncode, check.stderr) == (0, b"")
    return found


def test_pull_writes_a_complete_tar() -> None:
    payloads = [message(3 * i) for i in range(25)]
    with Producer(payloads) as producer, pulling(producer.url) as process:
        archive, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors
    assert members(archive) == {f"{i:05d}.h5": payload for i, payload in enumerate(payloads)}
    lines = errors.decode().splitlines()
    assert [line.split(",")[0] for line in lines] == ["At 10", "At 20"]
    assert lines[0].endswith(" MB/sec.")


def test_pull_from_several_addresses_with_names_and_quiet() -> None:
    with Producer([b"a"]) as one, Producer([b"bb"]) as two:
        arguments = ["-d", one.url, "-d", two.url, "--names", "part-%d.bin", "-q"]
        with pulling(*arguments) as process:
            archive, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (0, b"")
    found = members(archive)
    assert set(found) == {"part-0.bin", "part-1.bin"}
    assert sorted(found.values()) == [b"a", b"bb"]


def test_pull_in_a_job_takes_the_url_of_its_transfer() -> None:
    with (
        Producer([b"payload"]) as producer,
        pulling("-q", environment={"LCLSTREAM_URL": producer.url}) as process,
    ):
        archive, _ = process.communicate(timeout=50)
    assert process.returncode == 0
    assert members(archive) == {"00000.h5": b"payload"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_a_complete_tar(number: signal.Signals) -> None:
    payloads = [b"x" * 3000, b"y" * 10]
    with Producer(payloads, end=False) as producer, pulling("-q", producer.url) as process:
        assert process.stdout is not None
        # Two members of 7 and 2 blocks have arrived.
        archive = process.stdout.read(9 * 512)
        process.send_signal(number)
        rest, errors = process.communicate(timeout=50)
        assert (process.returncode, errors) == (128 + number, b"")
        producer.end()
    assert list(members(archive + rest).values()) == payloads


def test_listen() -> None:
    with Receiver("tcp://127.0.0.1:0", listen=True) as free:
        url = free.urls[0]
    with pulling("-q", "-l", url, "-n", "2") as process:
        for content in (b"first", b"second"):
            with Producer([content], url) as producer:
                pass
            assert producer.error is None
        archive, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors
    assert members(archive) == {"00000.h5": b"first", "00001.h5": b"second"}


def test_reader_of_the_tar_that_leaves() -> None:
    payloads = [b"x" * 300_000] * 20
    with Producer(payloads, end=False) as producer, pulling("-q", producer.url) as process:
        assert process.stdout is not None
        process.stdout.read(512)
        process.stdout.close()
        process.wait(50)
        assert process.stderr is not None
        assert process.stderr.read() == b"lclstream: nobody reads the tar any more\n"
        assert process.returncode == 1


def test_push_to_a_reader(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode() * 50_000)
    with Receiver("tcp://127.0.0.1:0", listen=True) as receiver:
        command = [*LCLSTREAM, "push", "-n", "1", "--addr", receiver.urls[0], *map(str, files)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            got = [bytes(payload) for payload in receiver]
            _, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (0, b"Sent 3 messages\n")
    assert got == [file.read_bytes() for file in files]


def test_push_to_nobody_fails(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    command = [*LCLSTREAM, "push", "-n", "1", "--timeout", "0.3", "--addr", "tcp://127.0.0.1:1"]
    done = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"no connection within 0.3 s" in done.stderr


def test_push_of_a_missing_file() -> None:
    done = subprocess.run([*LCLSTREAM, "push", "nowhere.h5"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (2, b"lclstream: no such file: nowhere.h5\n")


@pytest.mark.parametrize("names", ["plain.h5", "%s-%s", "%", "%(x)d"])
def test_bad_pattern_of_names(names: str) -> None:
    with pytest.raises(InvalidConfigError, match=r"^expected a pattern with one number"):
        TarWriter(io.BytesIO(), names)
