"""What the operators do by themselves, against the real service."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from tests.operators.world import World, conf

from lclstream.core.errors import NotFoundError, UnavailableError
from lclstream.operators import (
    LclstreamHook,
    ReserveTransferOperator,
    StartBufferOperator,
    StopTransferOperator,
    SubmitJobOperator,
    SuperviseTransferOperator,
)
from lclstream.operators.hooks import explained
from lclstream.operators.reservation import TAKE_OVER_S, Reservation, document
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.models import TransferInfo
from lclstream.transfers.states import Phase

STREAMER = conf(1)["parameters"]["streamer"]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LCLSTREAM", json.dumps(world.connection))


@pytest.fixture
def client(world: World) -> Iterator[TransfersClient]:
    with world.client() as opened:
        yield opened


class TaskInstance:
    """As much of a task instance as an operator uses."""

    dag_id = "stream"
    task_id = "reserve"

    def __init__(self, run_id: str, map_index: int = -1) -> None:
        self.run_id = run_id
        self.map_index = map_index
        self.xcoms: dict[str, Any] = {}

        self.states: dict[str, str | None] = {}
        """Of the other tasks of the run."""

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def get_task_states(
        self, *, dag_id: str, run_ids: list[str], task_ids: list[str]
    ) -> dict[str, dict[str, str | None]]:
        assert dag_id == self.dag_id
        return {run: {task: self.states.get(task) for task in task_ids} for run in run_ids}


@pytest.fixture
def ti(request: pytest.FixtureRequest) -> TaskInstance:
    return TaskInstance(request.node.name)


def reserve(ti: TaskInstance, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"streamer": STREAMER, "experiment": "tst000001", "run": 1}
    return ReserveTransferOperator(task_id="reserve", **arguments | changes).execute({"ti": ti})


def test_the_same_run_gets_the_same_transfer_with_a_newer_lease(
    ti: TaskInstance, client: TransfersClient
) -> None:
    first, second = reserve(ti), reserve(ti)
    assert second == first | {"generation": 2}
    assert first["holder"] == f"stream/{ti.run_id}/reserve"
    assert client.get(first["id"]).phase is Phase.REQUESTED
    client.cancel(first["id"], now=True)


def test_each_instance_of_a_mapped_task_has_a_transfer_of_its_own(
    ti: TaskInstance, client: TransfersClient
) -> None:
    made = [reserve(TaskInstance(ti.run_id, index)) for index in (0, 1, 0)]
    assert made[0]["id"] == made[2]["id"] != made[1]["id"]
    assert [each["generation"] for each in made] == [1, 1, 2]
    for each in made[:2]:
        client.cancel(each["id"], now=True)


def test_an_earlier_try_that_is_ending_yet_is_waited_for_again(
    ti: TaskInstance, client: TransfersClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reserve(ti)
    real = TransfersClient.get

    def ending(self: TransfersClient, transfer: int) -> TransferInfo:
        return real(self, transfer).model_copy(update={"phase": Phase.FAILING})

    monkeypatch.setattr("lclstream.operators.transfer.STOP_S", 0.0)
    monkeypatch.setattr(TransfersClient, "get", ending)
    with pytest.raises(AirflowException, match=r"of an earlier try is failing yet") as caught:
        reserve(ti)
    assert not isinstance(caught.value, AirflowFailException)
    client.cancel(first["id"], now=True)


@pytest.mark.parametrize("text", [False, True])
def test_the_streamer_reads_the_run_that_begins(text: bool, ti: TaskInstance) -> None:
    streamer = {**STREAMER, "source_identifier": "exp={experiment},run={run},dir=/{x}"}
    task = ReserveTransferOperator(
        task_id="reserve",
        streamer=json.dumps(streamer) if text else streamer,
        experiment="tst000001",
        run="20260101_7",
    )
    request = task._request()
    assert request.streamer.source_identifier == "exp=tst000001,run=20260101_7,dir=/{x}"
    assert request.run == "20260101_7"


@pytest.mark.parametrize("experiment", ["a,dir=/etc", "..", "a/b", ""])
def test_a_name_that_is_more_than_a_name_is_not_filled_in(
    experiment: str, ti: TaskInstance
) -> None:
    streamer = {**STREAMER, "source_identifier": "exp={experiment},run={run}"}
    with pytest.raises(AirflowFailException, match="source_identifier: experiment must be letters"):
        reserve(ti, streamer=streamer, experiment=experiment)


def test_a_run_that_was_cleared_after_its_end_gets_a_new_transfer(
    ti: TaskInstance, client: TransfersClient
) -> None:
    first = reserve(ti)
    client.cancel(first["id"])
    second = reserve(ti)
    assert second["id"] != first["id"]
    assert client.get(first["id"]).is_final
    client.cancel(second["id"], now=True)


STARTED = {"start_buffer": "success", "submit": "success"}


def reserve_in_dag(ti: TaskInstance, **changes: Any) -> dict[str, Any]:
    """Reserve as a DAG does that starts a buffer and jobs, and watches."""
    arguments: dict[str, Any] = {"streamer": STREAMER, "experiment": "tst000001", "run": 1}
    with DAG("stream"):
        first = ReserveTransferOperator(task_id="reserve", **arguments | changes)
        start = StartBufferOperator(task_id="start_buffer", transfer=first.output)
        submit = SubmitJobOperator.partial(task_id="submit", transfer=first.output)
        watch = SuperviseTransferOperator(task_id="supervise", transfer=first.output)
        first >> start >> submit.expand(script=["true", "false"]) >> watch
    return first.execute({"ti": ti})


def test_a_watch_that_was_cleared_when_all_had_ended_gets_what_has_ended(
    ti: TaskInstance, client: TransfersClient
) -> None:
    first = reserve_in_dag(ti)
    client.cancel(first["id"], now=True)
    ti.states = dict(STARTED)
    assert reserve_in_dag(ti) == first
    with pytest.raises(AirflowFailException, match=r"canceled: canceled by cn:airflow$"):
        SuperviseTransferOperator(task_id="supervise", transfer=first).execute({"ti": ti})


@pytest.mark.parametrize("again", ["start_buffer", "submit"])
def test_a_start_that_was_cleared_when_all_had_ended_gets_a_new_transfer(
    ti: TaskInstance, client: TransfersClient, again: str
) -> None:
    first = reserve_in_dag(ti)
    client.cancel(first["id"], now=True)
    ti.states = STARTED | {again: None}
    second = reserve_in_dag(ti)
    assert second["id"] != first["id"]
    client.cancel(second["id"], now=True)


def test_a_transfer_that_ends_while_it_is_taken_over_is_kept(
    ti: TaskInstance, client: TransfersClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reserve_in_dag(ti)
    ti.states = dict(STARTED)
    real = TransfersClient.lease

    def late(self: TransfersClient, transfer: int, **wanted: Any) -> TransferInfo:
        self.cancel(transfer, now=True)
        return real(self, transfer, **wanted)

    monkeypatch.setattr(TransfersClient, "lease", late)
    assert reserve_in_dag(ti) == first


def test_a_run_that_is_too_old_to_begin_may_be_taken_over(
    ti: TaskInstance, client: TransfersClient
) -> None:
    guard = {"begin_time": "2026-01-01T00:00:00Z", "max_age_s": 60}
    first = reserve_in_dag(ti)
    ti.states = dict(STARTED)
    assert reserve_in_dag(ti, **guard) == first | {"generation": 2}
    client.cancel(first["id"], now=True)
    assert reserve_in_dag(ti, **guard) == first | {"generation": 2}
    ti.states = {}
    with pytest.raises(AirflowFailException, match=r"^run 1 of tst000001 began"):
        reserve_in_dag(ti, **guard)


def test_a_reservation_has_a_link_and_no_secret(ti: TaskInstance, client: TransfersClient) -> None:
    made = reserve(ti)
    link = ti.xcoms["lclstream_transfer_link"]
    assert link == f"https://airflow.example.org/prefix/lclstream/transfers/{made['id']}"
    assert set(made) == {"id", "holder", "generation"}
    client.cancel(made["id"], now=True)


def test_the_streamer_may_be_text(ti: TaskInstance, client: TransfersClient) -> None:
    made = reserve(ti, streamer=json.dumps(STREAMER), producers="1", limits="{idle_s: 5}")
    client.cancel(made["id"], now=True)


def test_a_bad_configuration_names_every_fault_at_once(ti: TaskInstance) -> None:
    wrong = {**STREAMER, "processing_pipeline": {"type": "BatchProcessingPipelin"}}
    with pytest.raises(AirflowFailException) as caught:
        reserve(ti, streamer=wrong, producers=0)
    assert "BatchProcessingPipelin" in str(caught.value)
    assert "producers" in str(caught.value)


@pytest.mark.parametrize("begin_time", ["2026-01-01T00:00:00", "2026-01-01T00:00:00Z"])
def test_an_old_run_is_refused(ti: TaskInstance, begin_time: str) -> None:
    with pytest.raises(AirflowFailException, match=r"^run 1 of tst000001 began \d+ s ago, at 2026"):
        reserve(ti, begin_time=begin_time, max_age_s="60")


def test_a_time_that_is_none_is_refused(ti: TaskInstance) -> None:
    with pytest.raises(AirflowFailException, match=r"begin_time: expected RFC 3339, got 'soon'$"):
        reserve(ti, begin_time="soon", max_age_s=60)


@pytest.mark.parametrize("transfer", ["7", 7, {"id": 7}, None])
def test_a_transfer_is_what_reserve_returned(transfer: Any, ti: TaskInstance) -> None:
    task = StartBufferOperator(task_id="start_buffer", transfer=transfer)
    with pytest.raises(AirflowFailException, match=r"^transfer: must be the output of Reserve"):
        task.execute({"ti": ti})


def test_nothing_started_is_said_at_once(ti: TaskInstance, client: TransfersClient) -> None:
    made = reserve(ti)
    with pytest.raises(AirflowFailException, match=r"is only reserved: nobody has started"):
        SuperviseTransferOperator(task_id="supervise", transfer=made).execute({"ti": ti})
    client.cancel(made["id"], now=True)


def test_an_event_other_than_the_end_fails_the_task() -> None:
    task = SuperviseTransferOperator(task_id="supervise", transfer={})
    event = {"transfer": 7, "status": "deadline", "reason": "too long"}
    with pytest.raises(AirflowFailException, match=r"^transfer 7: too long$"):
        task.finish({}, event)


def test_a_killed_task_leaves_time_for_its_next_try(
    ti: TaskInstance, client: TransfersClient
) -> None:
    """Whether it was cleared or ended for good, only the teardown knows at once."""
    made = reserve(ti)
    task = StartBufferOperator(task_id="start_buffer", transfer=made)
    task.on_kill()
    task._running = (LclstreamHook(), Reservation.read(made))
    task.on_kill()
    lease = client.get(made["id"]).lease
    assert lease is not None
    assert lease.expires is not None
    assert TAKE_OVER_S / 2 < lease.expires - time.time() <= TAKE_OVER_S
    assert reserve(ti) == made | {"generation": 2}
    task.on_kill()
    lease = client.get(made["id"]).lease
    assert lease is not None
    assert lease.expires is not None
    assert lease.expires - time.time() > TAKE_OVER_S
    client.cancel(made["id"], now=True)


def test_a_killed_stop_leaves_the_end_to_the_service(
    ti: TaskInstance, client: TransfersClient
) -> None:
    made = reserve(ti)
    task = StopTransferOperator(task_id="stop", transfer=made)
    task._running = (LclstreamHook(), Reservation.read(made))
    task.on_kill()
    lease = client.get(made["id"]).lease
    assert lease is not None
    assert lease.expires is not None
    client.cancel(made["id"], now=True)


def test_jobs_are_named_after_their_task() -> None:
    task = SubmitJobOperator(task_id="submit_peaks", transfer={}, script="true")
    names = [task.job_name(TaskInstance("r", index)) for index in (-1, 0, 1)]
    assert names == ["submit_peaks", "submit_peaks-0", "submit_peaks-1"]


def test_only_what_may_pass_is_tried_again() -> None:
    with pytest.raises(AirflowFailException, match=r"^NotFoundError: no transfer"), explained():
        raise NotFoundError("no transfer")
    with pytest.raises(AirflowException) as caught, explained():
        raise UnavailableError("later")
    assert not isinstance(caught.value, AirflowFailException)


def test_text_that_is_no_document_is_refused() -> None:
    with pytest.raises(AirflowFailException, match=r"^neither YAML nor JSON"):
        document("{")


def test_the_connection_can_be_tried() -> None:
    assert LclstreamHook().test_connection() == (True, "the transfers service answered")


@pytest.mark.parametrize(
    ("connection", "said"),
    [
        ({"host": "http://127.0.0.1:1"}, "host: must be the https:// URL"),
        ({"host": "https://127.0.0.1:1", "extra": {}}, "extra: must name the identity folder"),
    ],
)
def test_a_bad_connection_says_why(
    connection: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_LCLSTREAM", json.dumps({"conn_type": "lclstream"} | connection)
    )
    works, why = LclstreamHook().test_connection()
    assert not works
    assert said in why
