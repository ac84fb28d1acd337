import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from tests.elog.airflow_lookalike import Airflow
from tests.elog.world import DAG, PARTITIONS, World, wait_until

from lclstream.cli.main import main
from lclstream.core.errors import InvalidConfigError
from lclstream.demo.kafka import FAST_CLIENT, MockKafka
from lclstream.elog.play import read_parameters
from lclstream.identity.authority import Authority

LCLSTREAM = [
    sys.executable,
    "-c",
    "import sys; from lclstream.cli.main import main; sys.exit(main())",
]


@contextmanager
def running(*words: str | Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*LCLSTREAM, *map(str, words)], stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("verb", ["watch", "definitions", "standin", "play"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["elog", verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "example: lclstream elog" in shown


def test_definitions_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: one\ndag: stream\ntrigger: START_OF_RUN\n")
    assert main(["elog", "definitions", str(tmp_path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"name": "one", "dag": "stream", "trigger": "START_OF_RUN"}
    path.write_text("name: one\ndag: stream\ntrigger: START\n")
    assert main(["elog", "definitions", str(tmp_path)]) == 2
    assert "START_OF_RUN" in capsys.readouterr().err


def test_a_configuration_can_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World("127.0.0.1:1", {}, Airflow(), tmp_path)
    assert main(["elog", "watch", "--check", str(world.config())]) == 0
    assert "is usable" in capsys.readouterr().out


def test_run_parameters_are_read_from_the_command_line() -> None:
    assert read_parameters(["stream=on", "n=3", "a.b=[1]", "x="]) == {
        "stream": True,
        "n": 3,
        "a.b": [1],
        "x": None,
    }
    for line in ("stream", "=on", "a=["):
        with pytest.raises(InvalidConfigError, match=r"--param"):
            read_parameters([line])


def test_a_played_run_starts_a_dag(tmp_path: Path) -> None:
    """Everything in its own process: a run is played to the stand-in, the watcher hears of it."""
    authority = Authority.create(tmp_path / "authority", "Test Authority")
    authority.issue_service(tmp_path / "elog", "elog", ["127.0.0.1"])
    for name in ("watcher", "player"):
        authority.issue_user(tmp_path / name, name, name)
    topics = ("experiments", "shifts", "experiment_switch", "runs", "file_catalog", "workflow_jobs")
    ready, log = tmp_path / "elog.json", tmp_path / "log"
    with MockKafka(dict.fromkeys(topics, PARTITIONS)) as broker, Airflow(DAG) as airflow:
        world = World(broker.bootstrap, FAST_CLIENT, airflow, tmp_path)
        config = tmp_path / "elog.yaml"
        config.write_text(yaml.safe_dump({"kafka": broker.bootstrap, "identity": "elog"}))
        words = ("elog", "standin", config, "--ready-file", ready)
        with running(*words, log=log) as standin:
            wait_until(ready.is_file)
            url = json.loads(ready.read_text())["url"]
            elog = {"url": url, "identity": "watcher"}
            template = url + "/jid/ws/c/{experiment}/{event}"
            joined = tmp_path / "watcher.json"
            with world.process(elog=elog, counters_url=template, ready_file=joined.name):
                wait_until(joined.is_file)
                player = ("elog", "play", "--url", url, "--identity", tmp_path / "player")
                run = ("--experiment", world.experiment, "--seconds", "3", "--param", "a=1")
                with running(*player, *run, log=tmp_path / "played") as played:
                    assert played.wait(30) == 0
                airflow.wait_for(lambda: world.run_id() in airflow.ids)
            standin.terminate()
            assert standin.wait(30) == 0
    told = [json.loads(line) for line in (tmp_path / "played").read_text().splitlines()]
    assert [(each["state"], each["run"]) for each in told] == [("begun", 1), ("ended", 1)]
    conf = airflow.runs[DAG, world.run_id()]["conf"]
    assert conf["counters_url"].startswith(f"{url}/jid/ws/c/{world.experiment}/arp%3A")
