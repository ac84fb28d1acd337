"""The headless Airflow as a process: what an interrupted start leaves behind."""

import threading
import time
from pathlib import Path

import pytest

from lclstream.core.errors import UnavailableError
from lclstream.demo.airflow import PARTS, Airflow
from lclstream.demo.sessions import members
from lclstream.identity.authority import Authority

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "authority", "test")
    authority.issue_service(tmp_path / "web", "airflow-web", ["127.0.0.1"])
    return tmp_path / "web"


@pytest.mark.parametrize("processes", [1, 3], ids=["database", "parts"])
def test_a_start_can_be_interrupted(tmp_path: Path, identity: Path, processes: int) -> None:
    airflow = Airflow(tmp_path / "home", dags=ROOT / "dags", identity=identity)
    errors: list[UnavailableError] = []

    def start() -> None:
        try:
            airflow.start()
        except UnavailableError as error:
            errors.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    deadline = time.monotonic() + 120
    while len(airflow._sessions) < processes and time.monotonic() < deadline:
        time.sleep(0.05)
    sessions = {process.pid for process in airflow._sessions}
    airflow.stop()
    starting.join(60)
    assert [str(error) for error in errors] == ["airflow is being stopped"]
    assert sessions
    assert members(sessions) == []


def test_a_part_that_cannot_start_is_named(tmp_path: Path, identity: Path) -> None:
    airflow = Airflow(
        tmp_path / "home",
        dags=ROOT / "dags",
        identity=identity,
        environment={"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "nonsense://"},
    )
    with pytest.raises(
        UnavailableError, match=r"^airflow could not make its database, see .*migrate.log$"
    ):
        airflow.__enter__()


def test_two_do_not_meet(tmp_path: Path, identity: Path) -> None:
    one, two = (
        Airflow(tmp_path / name, dags=ROOT / "dags", identity=identity) for name in ("a", "b")
    )
    assert one.port != two.port
    assert set(PARTS) == {"api-server", "scheduler", "triggerer", "dag-processor"}
    assert one.environment["AIRFLOW_HOME"] != two.environment["AIRFLOW_HOME"]
