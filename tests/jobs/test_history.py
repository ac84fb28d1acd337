import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from lclstream.core.errors import IllegalTransitionError
from lclstream.jobs import history
from lclstream.jobs.states import JobState, Transition

S = JobState


@pytest.fixture
def status(tmp_path: Path) -> Path:
    path = tmp_path / "status.csv"
    history.record(path, 0, S.NEW, '{"backend":{"queue_name":"milano"}}')
    return path


def test_rows_have_the_form_of_psik(status: Path) -> None:
    history.record(status, 1, S.QUEUED, "7188")
    lines = status.read_text().splitlines()
    assert lines[0].split(",", 1)[1] == '0,new,{"backend":{"queue_name":"milano"}}'
    assert lines[1].split(",", 1)[1] == "1,queued,7188"
    float(lines[1].split(",")[0])


def test_info_keeps_its_commas(status: Path) -> None:
    history.record(status, 1, S.QUEUED)
    history.record(status, 1, S.FAILED, "no space, no luck")
    assert history.read(status)[-1].info == "no space, no luck"


def test_line_break_in_info_forges_no_row(status: Path) -> None:
    history.record(status, 1, S.QUEUED)
    history.record(status, 1, S.FAILED, "bad\n1795210995.2,1,completed,\r\n")
    rows = history.read(status)
    assert [row.state for row in rows] == [S.NEW, S.QUEUED, S.FAILED]
    assert rows[-1].info == "bad\\n1795210995.2,1,completed,\\r\\n"


def test_illegal_row_is_not_written(status: Path) -> None:
    before = status.read_bytes()
    with pytest.raises(IllegalTransitionError):
        history.record(status, 1, S.COMPLETED)
    assert status.read_bytes() == before


def test_row_of_a_writer_that_died_is_left_out(status: Path) -> None:
    with status.open("a") as file:
        file.write("1795210993.27,1,que")
    history.record(status, 1, S.QUEUED, "5")
    assert [row.state for row in history.read(status)] == [S.NEW, S.QUEUED]


def test_rows_of_psik_are_read() -> None:
    text = (
        '1795210993.2682624,0,new,{"backend":{"queue_name":"milano"}}\n'
        "1795210993.2701805,1,queued,7188\n"
        "1795210993.2763755,1,active,\n"
        "\n"
        "no row at all\n"
        "1795210995.2655442,1,completed,\n"
    )
    rows = history.parse(text)
    assert rows[1] == Transition(1795210993.2701805, 1, S.QUEUED, "7188")
    assert [row.state for row in rows] == [S.NEW, S.QUEUED, S.ACTIVE, S.COMPLETED]


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        history.read(tmp_path / "status.csv")


def test_of_many_writers_one_wins(status: Path) -> None:
    history.record(status, 1, S.QUEUED)
    code = (
        "import sys; from pathlib import Path; from lclstream.jobs import history;"
        "history.record(Path(sys.argv[1]), 1, history.JobState.ACTIVE)"
    )
    # All of them wait for the lock, so they come at the same moment.
    with status.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        command = [sys.executable, "-c", code, str(status)]
        writers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(4)]
    codes = [writer.wait(20) for writer in writers]
    assert sorted(codes) == [0, 1, 1, 1]
    assert [row.state for row in history.read(status)] == [S.NEW, S.QUEUED, S.ACTIVE]


@pytest.mark.parametrize("when", ["nan", "inf", "-inf", "1e999"])
def test_row_without_a_time_is_no_row(when: str) -> None:
    assert history.parse(f"{when},1,queued,7\n") == []
