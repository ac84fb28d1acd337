"""`make demo` as a visitor runs it, and as an impatient one ends it."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAST_LINE = re.compile(r"^ledger balanced: (\d+) events sent, (\d+) received$")

pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]


# The visitor's own environment: package clients are configured by it and by files in the home.
VISITOR = {**os.environ, "HOME": pwd.getpwuid(os.getuid()).pw_dir, "PYTHONUNBUFFERED": "1"}


def processes_with(text: str) -> list[str]:
    """Return the command lines of processes that name a text in arguments or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            # A process that writes a title writes it over its environment.
            known = command + (entry / "environ").read_bytes() + bytes((entry / "cwd").readlink())
        except OSError:
            continue
        if text.encode() in known:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def assert_balanced(output: str) -> None:
    last = output.strip().splitlines()[-1]
    found = LAST_LINE.match(last)
    assert found, output[-3000:]
    assert found[1] == found[2] != "0"


def results_of(output: str) -> dict[str, Path]:
    """Return the paths that the demo printed."""
    return {
        name: Path(path) for name, path in re.findall(r"^(result|picture) +(\S+)$", output, re.M)
    }


def test_make_demo_in_a_fresh_clone_twice(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is not a git checkout")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for _ in range(2):
        began = time.monotonic()
        done = subprocess.run(
            ["make", "--no-print-directory", "demo"],
            cwd=clone,
            env=VISITOR,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        output = done.stdout
        print(f"make demo took {time.monotonic() - began:.0f} s")  # noqa: T201
        assert done.returncode == 0, output[-3000:] + done.stderr[-3000:]
        assert_balanced(output)
        for path in results_of(output).values():
            assert path.stat().st_size > 1000
        assert (results_of(output)["picture"].read_bytes())[:4] == b"\x89PNG"
        assert "first message at a consumer" in output
        assert processes_with(str(clone)) == []


class Demo:
    """A demo that somebody watches."""

    def __init__(self, *options: str, folder: Path) -> None:
        # Sockets of SLURM need a short path.
        self.temporary = Path(tempfile.mkdtemp(prefix="demo-"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lclstream.cli", "demo", "--output", str(folder), *options],
            env=VISITOR | {"TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, text: str, timeout_s: float = 300.0) -> None:
        with self._news:
            seen = self._news.wait_for(
                lambda: self._ended or any(text in line for line in self.lines),
                timeout_s,
            )
        assert seen, "".join(self.lines)
        assert any(text in line for line in self.lines), "".join(self.lines)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def interrupt(self, number: int) -> int:
        os.kill(self._process.pid, number)
        return self._process.wait(timeout=90)

    def close(self) -> None:
        if self.is_running():
            self.interrupt(signal.SIGINT)
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        shutil.rmtree(self.temporary)


@pytest.fixture
def demo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Demo]:
    watched = Demo("--events", "100000", "--rate", "20", *request.param, folder=tmp_path)
    yield watched
    watched.close()


@pytest.mark.parametrize(
    ("demo", "moment", "number"),
    [
        pytest.param((), "airflow ", signal.SIGINT, id="while it starts"),
        pytest.param((), "the first message is at", signal.SIGINT, id="while it streams"),
        pytest.param(("--local",), "the first message is at", signal.SIGTERM, id="local jobs"),
    ],
    indirect=["demo"],
)
def test_interrupted_demo_leaves_nothing(demo: Demo, moment: str, number: int) -> None:
    demo.wait_for(moment)
    assert processes_with(str(demo.temporary))
    assert demo.interrupt(number) == 130, "".join(demo.lines)
    left = processes_with(str(demo.temporary))
    assert left == []
    assert list(demo.temporary.iterdir()) == []


@pytest.mark.parametrize("demo", [()], indirect=True)
def test_killed_demo_is_cleared_up_after(demo: Demo) -> None:
    demo.wait_for("the first message is at")
    assert demo.interrupt(signal.SIGKILL) == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while processes_with(str(demo.temporary)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_with(str(demo.temporary)) == []
    assert list(demo.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source", "nowhere.xtc2"], "--source: no file nowhere.xtc2"),
        (["--source", __file__], "--source: expected a file with suffix .xtc2, .h5"),
        (["--events", "0"], "must be at least 1, got 0"),
    ],
)
def test_wrong_use_is_told_at_once(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command: list[str] = [sys.executable, "-m", "lclstream.cli", "demo", *options]
    done = subprocess.run(command, env=VISITOR, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
    assert not any(tmp_path.iterdir())
