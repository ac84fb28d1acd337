"""`lclstream buffer push`, `pull`, `stat`, `drain` and `top`."""

import io
import json
import logging
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.buffer.peers import until
from tests.buffer.serving import END_S, finish, serving
from tests.buffer.test_control_plane import statistics

from lclstream.buffer.top import scaled, table
from lclstream.cli.main import main
from lclstream.identity.authority import Authority

LCLSTREAM = [sys.executable, "-m", "lclstream.cli", "buffer"]


Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of Unix sockets must be short; and `serve` changes where logs go."""
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)


@pytest.fixture
def run(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, bytes, str]]:
    """Run a command; returns its exit code and what it wrote."""

    def run(*words: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(["buffer", *words])
        output, error = capsysbinary.readouterr()
        return code, output, error.decode()

    return run


@contextmanager
def buffer(folder: Path, *options: str) -> Iterator[tuple[Any, str, str]]:
    with serving(folder, "--linger", "0.2", "--control", "unix:control", *options) as (
        process,
        addresses,
    ):
        assert addresses["control"] == [f"unix:{folder / 'control'}"]
        yield process, addresses["in"][0], addresses["out"][0]


def test_files_there_and_back(tmp_path: Path, run: Run) -> None:
    contents = {"a": b"first", "b": b"", "c": bytes(300_000)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with buffer(tmp_path, "--delivery", "safe") as (process, push, pull):
        code, _, told = run("push", push, "a", "b", "c", "--delivery", "safe")
        assert (code, told) == (0, "3 messages sent\n")
        assert run("drain", "unix:control", "--reason", "all sent")[0] == 0
        code, _, told = run("pull", pull, "--out", "got", "--delivery", "safe")
        assert (code, told) == (0, "3 messages received\n")
        code, report = finish(process)
    got = [path.read_bytes() for path in sorted((tmp_path / "got").iterdir())]
    assert got == list(contents.values())
    assert (code, report["reason"]) == (0, "all sent")
    assert not (tmp_path / "control").exists()


def test_lines_and_records_through_pipes(tmp_path: Path, run: Run) -> None:
    with buffer(tmp_path) as (process, push, pull):
        assert run("push", push, "--lines", "-", stdin=b"one\n\nthree")[0] == 0
        code, framed, _ = run("pull", pull, "-n", "3")
        assert code == 0
        assert framed.startswith(b"\0\0\0\0\0\0\0\x03one\0\0\0\0\0\0\0\0")
        assert run("push", push, "--framed", "-", stdin=framed)[0] == 0
        code, lines, _ = run("pull", pull, "--lines", "-n", "3", "--timeout", "20")
        assert (code, lines) == (0, b"one\n\nthree\n")
        code, _, told = run("push", push, "--framed", "-", stdin=framed[:-1])
        assert code == 1
        assert "the input ends inside a message of 5 bytes" in told
        code, _, told = run("pull", pull, "-n", "3", "--timeout", "0.3")
        assert (code, "no message within 0.3 s" in told) == (1, True)
        assert run("drain", "unix:control", "--now")[0] == 0
        finish(process)


def test_figures(tmp_path: Path, run: Run) -> None:
    with buffer(tmp_path, "--lanes", "2") as (_, push, _out):
        assert run("push", push, "--lines", "-", stdin=b"x\ny\n")[0] == 0
        code, text, _ = run("stat", "unix:control")
        figures = json.loads(text)
        assert (code, figures["received"]["messages"], figures["lanes"]) == (0, 2, 2)
        assert (figures["queue_messages"], figures["queue_bytes"]) == (2, 2)
        assert figures["oldest_s"] > 0
        code, text, _ = run("stat", "unix:control", "--prometheus")
        assert b"lclstream_buffer_queue_messages 2\n" in text
        code, text, _ = run("top", "unix:control", "--once")
        assert code == 0
        assert b"wait 2 messages, 2 B" in text
    code, _, told = run("stat", "unix:control")
    assert code == 1
    assert "no buffer at unix:control" in told


def test_control_over_https(tmp_path: Path, run: Run) -> None:
    authority = Authority.create(tmp_path / "ca", "Test CA")
    authority.issue_service(tmp_path / "service", "buffer", hosts=["127.0.0.1"])
    authority.issue_user(tmp_path / "alice", "alice", "user")
    options = ("--tls", "service", "--control", "https://127.0.0.1:0", "--allow-control", "alice")
    with serving(tmp_path, *options) as (process, addresses):
        (url,) = addresses["control"]
        code, text, _ = run("stat", url, "--identity", "alice")
        assert (code, json.loads(text)["state"]) == (0, "open")
        code, _, told = run("drain", url, "--identity", "service")
        assert (code, "may not POST" in told) == (1, True)
        assert run("stat", url)[0] == 2
        assert run("drain", url, "--identity", "alice", "--now")[0] == 0
        code, report = finish(process)
    assert report["reason"] == "asked to drain"


def test_messages_inside_tls(tmp_path: Path, run: Run) -> None:
    authority = Authority.create(tmp_path / "ca", "Test CA")
    authority.issue_service(tmp_path / "service", "buffer", hosts=["127.0.0.1"])
    authority.issue_user(tmp_path / "alice", "alice", "user")
    authority.issue_user(tmp_path / "bob", "bob", "user")
    address = "tls+tcp://127.0.0.1:0"
    options = ("--tls", "service", "--allow", "alice", "--in", address, "--out", address)
    with serving(tmp_path, *options, "--lanes", "2", "--sentinel") as (process, addresses):
        (push,), (pull,) = addresses["in"], addresses["out"]
        assert push.startswith("tls+tcp://")
        assert run("push", push, "--lines", "-", "--tls", "alice", stdin=b"a\nb\n")[0] == 0
        assert run("push", push, "-", "--tls", "bob", "--timeout", "2", stdin=b"no")[0] == 1
        process.send_signal(signal.SIGTERM)
        code, lines, _ = run("pull", pull, "--lines", "--tls", "alice")
        # The empty one is the sentinel.
        assert (code, lines) == (0, b"a\nb\n\n")
        code, report = finish(process)
    assert report["received"]["messages"] == 2


def test_top_in_a_terminal(tmp_path: Path) -> None:
    with buffer(tmp_path):
        watch_until(b"q", 0)
        watch_until(b"\x03", 130)


def watch_until(key: bytes, code: int) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*LCLSTREAM, "top", "unix:control", "--interval", "0.1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # Ctrl-C reaches who has the terminal.
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
    ) as process:
        os.close(theirs)
        shown = bytearray()

        def has_been_shown_twice() -> bool:
            shown.extend(os.read(ours, 4096))
            return shown.count(b"wait 0 messages") >= 2

        until(has_been_shown_twice, END_S)
        os.write(ours, key)
        # It cannot end while nobody reads what it shows.
        while b"\x1b[?1049l" not in shown:
            shown.extend(os.read(ours, 4096))
        process.wait(END_S)
    os.close(ours)
    # The terminal is as it was.
    assert shown.startswith(b"\x1b[?1049h")
    assert process.returncode == code


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["serve", "--lanes", "0"], "lanes must be >= 1, got 0"),
        (["serve", "--lanes", "2", "--durable", "x"], "durable needs one lane"),
        (["serve", "--control", "nonsense"], "control address must be unix:PATH"),
        (["serve", "--control", "https://127.0.0.1:0"], "--tls"),
        (["serve", "--control", "unix:/tmp/control"], "mkdir -m 700"),
        (["serve", "--require-tls"], "require_tls needs tls"),
        (["serve", "--tls", "nowhere"], "no id.crt in the identity folder nowhere"),
        (["stat", "tcp://127.0.0.1:1"], "control address must be unix:PATH"),
    ],
)
def test_what_cannot_be_is_said(run: Run, words: list[str], told: str) -> None:
    code, output, error = run(*words)
    assert (code, output) == (2, b"")
    assert told in error


def test_table() -> None:
    peers = [
        {"side": "out", "address": "10.0.0.1:4711", "identity": "", "messages": 4, "bytes": 4e9,
         "in_flight_bytes": 1_500_000, "stalled_s": 0.0, "seconds": 3.0, "end": ""},
        {"side": "out", "address": "10.0.0.2:4711", "identity": "job-7", "messages": 12_345,
         "bytes": 40, "in_flight_bytes": 0, "stalled_s": 2.25, "seconds": 65.0, "end": ""},
        {"side": "in", "address": "gone", "identity": "", "messages": 0, "bytes": 0,
         "in_flight_bytes": 0, "stalled_s": 0.0, "seconds": 0.0, "end": "closed"},
    ]  # fmt: skip
    summary = {
        **statistics().whole(), "lanes": 2, "peers": peers, "alarm": "disk full", "held_bytes": 500,
        "in_bytes_per_s": 2.5e9, "in_messages_per_s": 2500.0,
    }  # fmt: skip
    lines = table(summary)
    assert lines[0].startswith("open   lanes 2")
    assert "2.5 GB/s" in lines[1]
    assert "held 500 B of 1.0 kB (50 %)" in lines
    assert "ALARM disk full" in lines
    # Who is stalled comes first, who has gone is not shown.
    assert lines[-2].split()[:2] == ["out", "job-7"]
    assert "2.2 s" in lines[-2]
    assert "1.5 MB" in lines[-1]
    assert not any("gone" in line for line in lines)
    assert len(table(summary, 5)) == 5


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12.34, "12.3 B"), (2.5e9, "2.5 GB")],
)
def test_scaled(value: float, text: str) -> None:
    assert scaled(value, "B") == text
