"""An Airflow of the tests' own, inside this process: a database and no daemons."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from asgiref.sync import SyncToAsync
from tests.operators.world import World, running

ROOT = Path(__file__).parents[2]

# Airflow reads its settings when it is first imported, which the test files do.
HOME = Path(tempfile.mkdtemp(prefix="lclstream-tests-airflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
    "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
    "AIRFLOW__API__BASE_URL": "https://airflow.example.org/prefix",
}


@pytest.fixture(scope="session")
def database() -> None:
    """Make Airflow's tables."""
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Start the real transfers and jobs services."""
    with running(tmp_path_factory.mktemp("world")) as started:
        yield started


@pytest.fixture(autouse=True, scope="session")
def thread_of_asgiref() -> None:
    """Start the one thread that asgiref keeps for the whole process, before tests count."""
    SyncToAsync.single_thread_executor.submit(int).result()
