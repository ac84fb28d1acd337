"""The watcher on the embedded broker, against a look-alike of Airflow on a real port."""

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.elog.airflow_lookalike import Airflow
from tests.elog.messages import envelope, job_message, run_message
from tests.elog.watcher_suite import WatcherSuite
from tests.elog.world import DAG, PARTITIONS, TOPICS, World, until, wait_until

from lclstream.cli.main import main
from lclstream.core.errors import InvalidConfigError
from lclstream.demo.kafka import FAST_CLIENT, MockKafka
from lclstream.elog import calls, deadletters
from lclstream.elog.client import AsyncElogClient
from lclstream.elog.history import History, News
from lclstream.elog.messages import RawMessage
from lclstream.elog.models import Event, Position
from lclstream.elog.standin.config import StandinConfig
from lclstream.elog.standin.service import standin_service
from lclstream.identity.authority import Authority
from lclstream.identity.client import client
from lclstream.identity.web import WebService


@pytest.fixture
def broker() -> Iterator[MockKafka]:
    with MockKafka(dict.fromkeys((*TOPICS, "dead"), PARTITIONS)) as running:
        yield running


@pytest.fixture
def airflow() -> Iterator[Airflow]:
    with Airflow(DAG) as running:
        yield running


@pytest.fixture
def world(broker: MockKafka, airflow: Airflow, tmp_path: Path) -> World:
    return World(broker.bootstrap, FAST_CLIENT, airflow, tmp_path)


@pytest.fixture
def unserved(tmp_path: Path) -> World:
    """Return a world where nobody listens, for what must fail before it connects."""
    return World("127.0.0.1:1", {}, Airflow(), tmp_path)


class TestOnTheEmbeddedBroker(WatcherSuite):
    pass


@pytest.mark.anyio
async def test_airflow_down_is_waited_for(world: World) -> None:
    world.airflow.stop()
    async with world.watcher(status_file="status.json"):
        world.produce(world.begin())
        await until(lambda: f"airflow {DAG}" in status(world).get("troubles", {}))
        assert status(world)["state"] == "degraded"
        assert world.uncommitted() == 1
        world.airflow.start()
        await until(lambda: world.run_id() in world.airflow.ids)
        await until(lambda: world.uncommitted() == 0)
        await until(lambda: status(world)["state"] == "ok")
    assert not world.letters()


def status(world: World) -> dict[str, Any]:
    path = world.folder / "status.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


@pytest.mark.anyio
async def test_airflows_failures_are_retried(world: World) -> None:
    world.airflow.fail_posts = [500, 503, 403, 429]
    world.airflow.fail_logins = [503, 401]
    async with world.watcher():
        world.produce(world.begin())
        await until(lambda: world.uncommitted() == 0)
    assert [status for _, status in world.airflow.posts] == ["500", "503", "403", "429", "200"]
    assert not world.letters()


@pytest.mark.anyio
@pytest.mark.parametrize("refusal", [400, 422])
async def test_what_airflow_refuses_for_good_is_put_aside(world: World, refusal: int) -> None:
    world.airflow.fail_posts = [refusal]
    async with world.watcher():
        world.produce(world.begin(1), partition=0)
        await until(lambda: len(world.letters()) == 1)
        world.produce(world.begin(2), partition=0)
        await until(lambda: world.uncommitted() == 0)
    [letter] = world.letters()
    assert letter["dag_run_id"] == world.run_id(1)
    assert f"HTTP {refusal}" in letter["error"]
    assert world.airflow.ids == {world.run_id(2): 1}


@pytest.mark.anyio
async def test_an_unknown_dag_holds_up_nobody_and_is_put_aside(world: World) -> None:
    world.define(name="typo", dag="no_such_dag", trigger="START_OF_RUN")
    world.define(name="later", dag="later", trigger="START_OF_RUN")
    async with world.watcher(airflow={"unknown_dag_s": 3.0}):
        world.produce(world.begin(1), partition=0)
        await until(lambda: world.run_id() in world.airflow.ids)
        world.produce(world.begin(2), partition=0)
        await until(lambda: world.run_id(2) in world.airflow.ids)
        assert not world.letters()
        # A DAG file is parsed some seconds after it was put down.
        world.airflow.paused["later"] = False
        await until(lambda: len(world.letters()) == 2)
        await until(lambda: world.uncommitted() == 0)
    assert {each["dag_run_id"] for each in world.letters()} == {
        world.run_id(number, name="typo") for number in (1, 2)
    }
    assert world.run_id(name="later") in world.airflow.ids


@pytest.mark.anyio
async def test_a_paused_dag_gets_its_run_and_a_report(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.airflow.paused[DAG] = True
    async with world.watcher(status_file="status.json"):
        world.produce(world.begin())
        await until(lambda: world.run_id() in world.airflow.ids)
        await until(lambda: status(world)["counters"]["paused"] == 1)
    assert "dag_paused" in caplog.messages


@pytest.mark.anyio
async def test_a_stale_event_is_refused_and_reported(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.define(name="patient", dag=DAG, trigger="START_OF_RUN", max_age_s=7200)
    async with world.watcher(status_file="status.json"):
        world.produce(world.begin(age_s=3600))
        await until(lambda: world.uncommitted() == 0)
        await until(lambda: status(world)["counters"]["stale"] == 1)
    assert world.airflow.ids == {world.run_id(name="patient"): 1}
    assert "trigger_stale" in caplog.messages


@pytest.mark.anyio
async def test_what_gets_stale_while_airflow_is_down_is_put_aside(world: World) -> None:
    world.airflow.stop()
    async with world.watcher(max_age_s=0.5):
        world.produce(world.begin())
        await until(lambda: len(world.letters()) == 1)
        await until(lambda: world.uncommitted() == 0)
    assert "too old after retries" in world.letters()[0]["error"]


@pytest.mark.anyio
async def test_a_run_that_has_ended_does_not_start(world: World) -> None:
    world.define(name="end", dag=DAG, trigger="END_OF_RUN")
    end = world.begin(crud="Update", ended=True)
    async with world.watcher():
        world.produce(end, partition=0)
        await until(lambda: len(world.airflow.ids) == 1)
        world.produce(world.begin(), partition=1)
        await until(lambda: world.uncommitted() == 0)
    assert world.airflow.ids == {world.run_id(trigger="END_OF_RUN", name="end"): 1}


@pytest.mark.anyio
async def test_a_broker_that_was_away_changes_nothing(world: World, broker: MockKafka) -> None:
    async with world.watcher(status_file="status.json", ready_file="ready.json"):
        await until((world.folder / "ready.json").is_file)
        broker.down()
        await until(lambda: "kafka" in status(world).get("troubles", {}))
        broker.up()
        world.produce(world.begin())
        await until(lambda: world.run_id() in world.airflow.ids)
        await until(lambda: world.uncommitted() == 0)
        await until(lambda: status(world)["state"] == "ok")


@pytest.mark.anyio
async def test_a_topic_may_appear_later(airflow: Airflow, tmp_path: Path) -> None:
    with MockKafka({"runs": PARTITIONS}) as broker:
        world = World(broker.bootstrap, FAST_CLIENT, airflow, tmp_path)
        world.options["topic.metadata.refresh.interval.ms"] = 500
        world.define(name="by-hand", dag=DAG, trigger="MANUAL")
        async with world.watcher():
            world.produce(world.begin())
            await until(lambda: world.run_id() in world.airflow.ids)
            broker.create_topic("workflow_jobs", PARTITIONS)
            topic, found = job_message("j1", name="by-hand")
            world.produce((topic, {**found, "experiment_name": world.experiment}))
            name = f"{world.run_id(trigger='MANUAL', name='by-hand')}:j1"
            await until(lambda: name in world.airflow.ids)


@pytest.mark.anyio
async def test_reading_pauses_while_too_much_waits_for_airflow(world: World) -> None:
    world.airflow.stop()
    events = [world.begin(number) for number in range(1, 21)]
    async with world.watcher(in_flight=8, status_file="status.json"):
        world.produce(*events, partition=0)
        await until(lambda: status(world).get("kafka", {}).get("paused", False))
        assert status(world)["kafka"]["in_flight"] <= 10
        world.airflow.start()
        await until(lambda: world.uncommitted() == 0)
        await until(lambda: status(world)["kafka"]["lag_messages"] == 0)
    assert len(world.airflow.ids) == 20


@pytest.mark.anyio
async def test_dead_letters_may_go_to_a_topic(world: World) -> None:
    async with world.watcher(dead_letters={"topic": "dead"}):
        world.produce(b"\xff")
        await until(lambda: world.uncommitted() == 0)
    assert not world.letters()
    letters = world.read("dead", 1)
    assert letters[0]["value_base64"] == "/w=="
    assert letters[0]["value"] is None


@pytest.mark.anyio
async def test_a_letter_that_cannot_be_stored_holds_the_commit(world: World) -> None:
    folder = world.folder / "letters"
    async with world.watcher(
        dead_letters={"file": "letters/dead.jsonl"}, status_file="status.json"
    ):
        world.produce(b"{")
        await until(lambda: "dead_letters" in status(world).get("troubles", {}))
        assert world.uncommitted() == 1
        folder.mkdir()
        await until(lambda: world.uncommitted() == 0)
    assert len((folder / "dead.jsonl").read_text().splitlines()) == 1


@pytest.mark.anyio
async def test_a_fault_of_ours_stops_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    async with world.watcher():
        with monkeypatch.context() as patch:
            patch.setattr("lclstream.elog.watcher.triggers", broken)
            world.produce(world.begin(1))
            await until(lambda: len(world.letters()) == 1)
        world.produce(world.begin(2))
        await until(lambda: world.uncommitted() == 0)
    assert world.letters()[0]["error"] == "ZeroDivisionError: planted"
    assert world.airflow.ids == {world.run_id(2): 1}


@pytest.mark.anyio
async def test_the_state_is_shown_over_https(world: World, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority", "Test Authority")
    authority.issue_service(tmp_path / "server", "watcher", ["127.0.0.1"])
    authority.issue_user(tmp_path / "user", "Operator", "opr")
    service = world.watcher(health={"identity": "server"}, ready_file="ready.json")
    assert isinstance(service, WebService)
    async with service, client(tmp_path / "user", service.url) as http:
        await until((tmp_path / "ready.json").is_file)
        assert json.loads((tmp_path / "ready.json").read_text()) == {"url": service.url}
        shown: dict[str, Any] = {}
        while len(shown.get("kafka", {}).get("partitions", ())) != 3 * PARTITIONS:
            shown = (await http.get("/health")).json()
        assert shown["state"] == "ok"
        assert shown["counters"]["messages"] == 0


@pytest.mark.anyio
async def test_the_logbooks_definitions_and_its_button(
    world: World, broker: MockKafka, tmp_path: Path
) -> None:
    authority = Authority.create(tmp_path / "authority", "Test Authority")
    authority.issue_service(tmp_path / "elog", "elog", ["127.0.0.1"])
    authority.issue_user(tmp_path / "user", "Operator", "kadar")
    for topic in ("experiments", "shifts", "samples"):
        broker.create_topic(topic)
    logbook = StandinConfig(kafka=broker.bootstrap, identity=tmp_path / "elog")
    async with (
        standin_service(logbook) as standin,
        AsyncElogClient(standin.url, identity=tmp_path / "user") as elog,
        world.watcher(elog={"url": standin.url, "identity": "user"}),
    ):
        now, name = datetime.now(UTC), world.experiment
        await elog.send(calls.register_experiment(name, "TMO", leader="opr", start=now, end=now))
        definition = {
            "name": "at end",
            "executable": "/sdf/bin/lclstream-arp",
            "trigger": "END_OF_RUN",
            "location": "S3DF",
            "parameters": "--workflow stream --set producers=5",
        }
        await elog.send(calls.create_definition(name, definition))
        await elog.send(calls.start_run(name, {}))
        # Partitions are random: an end that came first would forbid the start.
        await until(lambda: len(world.airflow.ids) == 1)
        await elog.send(calls.end_run(name))
        await until(lambda: len(world.airflow.ids) == 2)
        presses = [await elog.send(calls.create_job(name, "at end", 1)) for _ in range(2)]
        await until(lambda: len(world.airflow.ids) == 4)
        await until(lambda: world.uncommitted() == 0)
    confs = {body["dag_run_id"]: body["conf"] for body in world.airflow.runs.values()}
    own = {key: conf for key, conf in confs.items() if conf["definition"] == "at end"}
    assert {conf["trigger"] for conf in own.values()} == {"END_OF_RUN", "MANUAL"}
    assert all(conf["parameters"] == {"producers": 5} for conf in own.values())
    jobs = {conf["elog_job"] for conf in own.values()}
    assert jobs == {None, *(press["_id"] for press in presses)}


def test_sigterm_finishes_what_is_under_way(world: World) -> None:
    with world.process() as watcher:
        # Asked to stop while Airflow thinks.
        world.airflow.before_answer = lambda _: watcher.send_signal(signal.SIGTERM)
        world.produce(world.begin())
        assert watcher.wait(30) == 0
    assert world.airflow.posts == [(world.run_id(), "200")]
    assert world.uncommitted() == 0


@pytest.mark.anyio
async def test_a_setting_that_librdkafka_does_not_know_is_a_misconfiguration(
    unserved: World,
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with unserved.watcher(kafka={"options": {"session.time.ms": 7}}) as service:
            await service.wait_closed(10)
    [error] = caught.value.exceptions
    assert isinstance(error, InvalidConfigError)
    assert "session.time.ms" in str(error)


def test_a_wrong_configuration_names_everything_and_exits_with_2(
    unserved: World, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka = {"options": {"enable.auto.commit": True}}
    path = unserved.config(kafka=kafka, max_age=3, in_flight=0)
    assert main(["elog", "watch", str(path)]) == 2
    text = capsys.readouterr().err
    assert "kafka.options: enable.auto.commit: decided by the watcher" in text
    assert "max_age: unknown field (did you mean 'max_age_s'?)" in text
    assert "in_flight: input should be greater than or equal to 1, got 0" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"workflows": []}, r"expected workflows or elog"),
        ({"dead_letters": {}}, r"expected topic or file"),
        ({"dead_letters": {"topic": "runs"}}, r"each letter would make another"),
        ({"nonrec_files": "("}, r"nonrec_files"),
        ({"counters_url": "https://x/{job}"}, r"only \{experiment\}, \{run\} and \{event\}"),
        ({"kafka": {"secrets": "absent"}}, r"kafka\.secrets: no file"),
        ({"workflows": ["absent"]}, r"cannot read"),
    ],
)
def test_what_can_never_work_is_refused(
    unserved: World, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidConfigError, match=reason):
        unserved.watcher(**changes)


def test_secrets_are_merged_and_must_be_private(unserved: World) -> None:
    secrets = unserved.folder / "secrets.yaml"
    secrets.write_text("sasl.password: x\n")
    secrets.chmod(0o600)
    unserved.watcher(kafka={"secrets": "secrets.yaml"})
    secrets.write_text("group.id: x\n")
    with pytest.raises(InvalidConfigError, match=r"expected settings of librdkafka"):
        unserved.watcher(kafka={"secrets": "secrets.yaml"})


def test_a_broker_that_hangs_does_not_hold_up_the_end(world: World, broker: MockKafka) -> None:
    with world.process(ready_file="ready.json") as watcher:
        wait_until((world.folder / "ready.json").is_file)
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            watcher.terminate()
            assert watcher.wait(30) == 0
        finally:
            os.kill(broker.pid, signal.SIGCONT)


def test_topics_without_runs_are_read_past(world: World) -> None:
    odd = ("experiment_switch", envelope(None, {"station": 0}))
    with world.process(kafka={"topics": ["runs", "experiment_switch"]}) as watcher:
        world.produce(run_message(experiment="other"), world.begin())
        wait_until(lambda: world.run_id() in world.airflow.ids)
        world.produce(odd)
        wait_until(lambda: world.uncommitted() == 0)
        watcher.terminate()
        assert watcher.wait(30) == 0


@pytest.mark.anyio
async def test_a_letter_that_the_broker_does_not_take_is_in_the_file_once(world: World) -> None:
    places = {"file": "dead.jsonl", "topic": "dead"}
    small = {"options": {**FAST_CLIENT, "message.max.bytes": 1000}}
    async with world.watcher(dead_letters=places, kafka=small, status_file="status.json"):
        world.produce(b"x" * 2000)
        await until(lambda: status(world).get("counters", {}).get("retries", 0) > 3)
        assert "dead_letters" in status(world)["troubles"]
    assert len(world.letters()) == 1


@pytest.mark.anyio
async def test_a_message_that_breaks_us_is_put_aside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = History.add

    def broken(self: History, event: Event) -> list[News]:
        if event.run == 1:
            raise RuntimeError("a fault of ours")
        return add(self, event)

    monkeypatch.setattr(History, "add", broken)
    async with world.watcher():
        world.produce(world.begin(1), world.begin(2), partition=0)
        await until(lambda: world.run_id(2) in world.airflow.ids)
        await until(lambda: world.uncommitted() == 0)
    [letter] = world.letters()
    assert letter["error"] == "RuntimeError: a fault of ours"


def test_a_long_message_is_left_out_of_its_letter() -> None:
    position = Position(topic="runs", partition=1, offset=7, recorded_at=datetime.now(UTC))
    letter = deadletters.letter(RawMessage(value=b"x" * 200_000, position=position), "not JSON")
    assert (letter["value"], letter["value_base64"], letter["offset"]) == (None, None, 7)
    said = "not JSON (the message is left out, its 200000 bytes lie at its offset)"
    assert letter["error"] == said
