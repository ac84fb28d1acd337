"""The stand-in of the logbook: its calls, its messages, its habits."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.elog.airflow_lookalike import Airflow
from tests.elog.messages import GOLDEN
from tests.elog.world import PARTITIONS, World

from lclstream.core.errors import (
    BackendError,
    InvalidConfigError,
    NotFoundError,
    RequestError,
    UntrustedPeerError,
)
from lclstream.demo.kafka import FAST_CLIENT, MockKafka
from lclstream.elog import calls
from lclstream.elog.access import tls_context
from lclstream.elog.client import AsyncElogClient
from lclstream.elog.models import read_envelope
from lclstream.elog.standin.config import MisbehaviourConfig, StandinConfig, standin_config
from lclstream.elog.standin.logbook import Logbook
from lclstream.elog.standin.page import page
from lclstream.elog.standin.publisher import Publisher
from lclstream.elog.standin.service import Standin, standin_service
from lclstream.identity.authority import Authority

EXPERIMENT = "tmox42619"
FILE = "/tmo/tmox42619/xtc/tmox42619-r0001-s000-c000.xtc2"
DEFINITION = {
    "name": "lclstream",
    "executable": "/sdf/x/lclstream-arp",
    "trigger": "START_OF_RUN",
    "location": "S3DF",
    "parameters": "--dag stream_on_run_start",
}


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identities")
    authority = Authority.create(folder / "authority", "Test Authority")
    authority.issue_service(folder / "elog", "elog", ["127.0.0.1"])
    authority.issue_user(folder / "user", "Operator", "kadar")
    return folder


Published = list[tuple[str, dict[str, Any]]]


class Kept:
    """A stand-in without a broker: its messages are kept in a list."""

    def __init__(self, identities: Path) -> None:
        self.published: Published = []
        logbook = Logbook(lambda topic, envelope: self.published.append((topic, envelope)))
        config = StandinConfig(kafka="unused", identity=identities / "elog", user_header="X-User")
        self.service = Standin(config, logbook)


@pytest.fixture
async def kept(identities: Path) -> AsyncIterator[Kept]:
    found = Kept(identities)
    async with found.service:
        yield found


@pytest.fixture
async def elog(kept: Kept, identities: Path) -> AsyncIterator[AsyncElogClient]:
    async with AsyncElogClient(kept.service.url, identity=identities / "user") as client:
        yield client


async def begin(elog: AsyncElogClient) -> None:
    """Make the experiment and start run 1."""
    moment = datetime(2026, 11, 20, tzinfo=UTC)
    await elog.send(
        calls.register_experiment(EXPERIMENT, "TMO", leader="opr", start=moment, end=moment)
    )
    await elog.send(calls.switch_experiment(EXPERIMENT, "TMO"))


async def play(elog: AsyncElogClient) -> None:
    """Do what was done when the golden messages were recorded."""
    await begin(elog)
    sample = {"name": "water", "description": "d", "params": {}}
    await elog.send(calls.Call(method="POST", path=f"/lgbk/{EXPERIMENT}/ws/samples/", json=sample))
    path = f"/lgbk/{EXPERIMENT}/ws/make_sample_current"
    await elog.send(calls.Call(method="GET", path=path, query={"sample_name": "water"}))
    await elog.send(calls.create_definition(EXPERIMENT, DEFINITION))
    await elog.send(calls.start_run(EXPERIMENT, {"DAQ Detectors/hsd": True, "x.y": 1.5}))
    await elog.send(calls.add_run_params(EXPERIMENT, {"stream": "on", "TMO:MMS:01.RBV": 3.2}))
    given = {"path": FILE, "size": 123, "checksum": "x"}
    times = {"create_timestamp": "2026-11-20T22:00:00.000001Z"}
    path = f"/lgbk/{EXPERIMENT}/ws/register_file"
    await elog.send(calls.Call(method="POST", path=path, json={**given, **times}))
    await elog.send(calls.file_available(EXPERIMENT, FILE, "S3DF", 1))
    job = await elog.send(calls.create_job(EXPERIMENT, "lclstream", 1))
    counters = [{"key": "<b>Events</b>", "value": 1200}]
    body = {"_id": job["_id"], "status": "RUNNING", "counters": counters}
    more = {"tool_id": 5512, "log_file_path": "/x/%J.log"}
    path = f"/lgbk/{EXPERIMENT}/ws/update_workflow_job"
    await elog.send(calls.Call(method="POST", path=path, json={**body, **more}))
    await elog.send(calls.start_run(EXPERIMENT, {}))
    await elog.send(calls.end_run(EXPERIMENT))
    await elog.send(calls.new_entry(EXPERIMENT, "transfer started", tags=["lclstream"], run=1))


FORMS = (
    ("+00:00", re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}000)?\+00:00$")),
    ("naive", re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$")),
    ("000Z", re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z$")),
    ("id", re.compile(r"^[0-9a-f]{24}$")),
)


def shape(value: Any) -> Any:
    """Return keys in their order, JSON types and forms of times; no contents."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    if isinstance(value, str):
        return next((name for name, form in FORMS if form.match(value)), "str")
    return type(value).__name__


@pytest.mark.anyio
@pytest.mark.skipif(not GOLDEN.is_file(), reason="the golden messages are not here")
async def test_messages_have_the_golden_shapes(kept: Kept, elog: AsyncElogClient) -> None:
    await play(elog)
    silent = {"experiments", "shifts"}
    ours = [
        (topic, shape(envelope))
        for topic, envelope in kept.published
        if topic not in silent and (topic, envelope.get("CRUD")) != ("samples", "Create")
    ]
    lines = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    made = [12, 1, 6, 5, 3, 7, 9, 2, 8, 10, 11, 4]
    in_order = [line for _, line in sorted(zip(made, lines, strict=True), key=lambda each: each[0])]
    theirs = [(line["topic"], shape(line["value"])) for line in in_order]
    assert ours == theirs


@pytest.mark.anyio
async def test_a_beamline_is_played(kept: Kept, elog: AsyncElogClient) -> None:
    await play(elog)
    told = [(topic, envelope.get("CRUD")) for topic, envelope in kept.published]
    assert told == [
        ("experiments", "Create"),
        ("shifts", "Create"),
        ("experiment_switch", None),
        ("samples", "Create"),
        ("samples", "Make_Current"),
        ("runs", "Create"),
        ("runs", "Update"),
        ("file_catalog", "Create"),
        ("file_catalog", "Update"),
        ("workflow_jobs", "Create"),
        ("workflow_jobs", "Update"),
        ("runs", "Update"),
        ("runs", "Create"),
        ("runs", "Update"),
        ("elog", "Create"),
    ]
    for _, envelope in kept.published:
        read_envelope(json.dumps(envelope).encode())
    params = kept.published[6][1]["value"]["params"]
    assert params == {"DAQ Detectors/hsd": True, "x\uff0ey": 1.5} | {
        "stream": "on",
        "TMO:MMS:01\uff0eRBV": 3.2,
    }
    switch = kept.published[2][1]["value"]
    assert switch["station"] == 0
    assert switch["userid"] == "kadar"
    run = await elog.send(calls.run_info(EXPERIMENT, 1))
    assert run["end_time"] is not None
    assert await elog.send(calls.run_files(EXPERIMENT, 1)) == [
        kept.published[8][1]["value"],
    ]
    current = await elog.send(calls.current_run(EXPERIMENT))
    assert current["num"] == 2
    assert re.match(r"^[0-9a-f]{24}$", current["sample"])
    [definition] = await elog.workflow_definitions(EXPERIMENT)
    assert definition["run_as_user"] == "kadar"


@pytest.mark.anyio
async def test_refusals_answer_200(elog: AsyncElogClient) -> None:
    await begin(elog)
    refused = [
        (calls.end_run(EXPERIMENT), r"there is no run"),
        (calls.run_info(EXPERIMENT, 9), r"no run '9'"),
        (calls.switch_experiment("other", "TMO"), r"no experiment 'other'"),
        (calls.create_definition(EXPERIMENT, {**DEFINITION, "trigger": "X"}), r"unknown trigger"),
        (calls.create_definition(EXPERIMENT, {**DEFINITION, "location": "X"}), r"unknown loc"),
        (calls.create_job(EXPERIMENT, "x", 1), r"no workflow 'x'"),
        (calls.update_job(EXPERIMENT, "x", status="DONE"), r"no job 'x'"),
        (calls.new_entry(EXPERIMENT, ""), r"needs log_text"),
        (calls.Call(method="POST", path=f"/lgbk/{EXPERIMENT}/ws/register_file"), r"needs a path"),
    ]
    for call, reason in refused:
        with pytest.raises(RequestError, match=reason) as caught:
            await elog.send(call)
        assert type(caught.value) is RequestError
    await elog.send(calls.create_definition(EXPERIMENT, DEFINITION))
    with pytest.raises(RequestError, match=r"a workflow 'lclstream' exists"):
        await elog.send(calls.create_definition(EXPERIMENT, DEFINITION))


@pytest.mark.anyio
async def test_unknown_experiments_and_failures_are_pages(elog: AsyncElogClient) -> None:
    with pytest.raises(NotFoundError, match=r"HTTP 404"):
        await elog.send(calls.current_run("nobody"))
    path = "/lgbk/ws/activeexperiment_for_instrument_station"
    query = {"instrument_name": "TMO", "station": "0"}
    with pytest.raises(BackendError, match=r"HTTP 500"):
        await elog.send(calls.Call(method="GET", path=path, query=query))
    with pytest.raises(RequestError, match=r"HTTP 405"):
        await elog.send(calls.Call(method="GET", path="/lgbk/ws/switch_experiment"))


@pytest.mark.anyio
async def test_an_unknown_file_publishes_null(kept: Kept, elog: AsyncElogClient) -> None:
    await begin(elog)
    await elog.send(calls.file_available(EXPERIMENT, "/nowhere", "S3DF", 1))
    assert kept.published[-1][1] == {"experiment_name": EXPERIMENT, "CRUD": "Update", "value": None}


@pytest.mark.anyio
async def test_operators_may_not_own_workflows(
    kept: Kept, identities: Path, elog: AsyncElogClient
) -> None:
    await begin(elog)
    url = f"{kept.service.url}/lgbk/{EXPERIMENT}/ws/create_update_workflow_def"
    context = tls_context(identities / "user", None)
    async with httpx.AsyncClient(verify=context, trust_env=False) as http:
        for user, success in (("tmoopr", False), ("root", False), ("kadar", True)):
            answer = await http.post(url, json=DEFINITION, headers={"X-User": user})
            assert answer.json()["success"] is success


@pytest.mark.anyio
async def test_nobody_gets_in_without_a_certificate(kept: Kept, identities: Path) -> None:
    ca = identities / "user" / "ca.crt"
    async with AsyncElogClient(kept.service.url, ca=ca) as elog:
        with pytest.raises(UntrustedPeerError):
            await elog.send(calls.current_run(EXPERIMENT))


@pytest.mark.anyio
async def test_counters_replace_and_the_page_escapes(
    kept: Kept, elog: AsyncElogClient, identities: Path
) -> None:
    await play(elog)
    bad = [{"key": "<script>x</script>", "value": "<b>1</b>"}]
    path = f"/jid/ws/replace_counters/{EXPERIMENT}/arp:x:r1"
    await elog.send(calls.Call(method="POST", path=path, json=[{"key": "old", "value": 1}]))
    await elog.send(calls.Call(method="POST", path=path, json=bad))
    text = page(kept.service.logbook)
    assert "&lt;script&gt;x&lt;/script&gt;" in text
    assert "<script>" not in text
    assert ">old<" not in text
    assert "transfer started" in text
    assert "x.y=1.5" in text
    context = tls_context(identities / "user", None)
    async with httpx.AsyncClient(verify=context, trust_env=False) as http:
        shown = await http.get(kept.service.url)
    assert shown.text == text
    with pytest.raises(RequestError, match=r"expected a list"):
        await elog.send(calls.Call(method="POST", path=path, json={"key": 1}))


@pytest.mark.anyio
async def test_empty_values_change_nothing_in_a_job(kept: Kept, elog: AsyncElogClient) -> None:
    await play(elog)
    [job] = await elog.send(calls.workflow_jobs(EXPERIMENT))
    path = f"/lgbk/{EXPERIMENT}/ws/update_workflow_job"
    body = {"_id": job["_id"], "counters": [], "tool_id": 0, "status": ""}
    await elog.send(calls.Call(method="POST", path=path, json=body))
    assert kept.published[-1][1]["value"]["status"] == "RUNNING"
    assert kept.published[-1][1]["value"]["counters"] == job["counters"]


@pytest.fixture
def broker() -> Iterator[MockKafka]:
    topics = ("experiments", "shifts", "experiment_switch", "samples", "runs", "file_catalog")
    with MockKafka(dict.fromkeys((*topics, "workflow_jobs"), PARTITIONS) | {"elog": 1}) as running:
        yield running


@pytest.mark.anyio
async def test_messages_reach_kafka_without_a_key(
    broker: MockKafka, identities: Path, tmp_path: Path
) -> None:
    config = StandinConfig(
        kafka=broker.bootstrap,
        identity=identities / "elog",
        ready_file=tmp_path / "ready.json",
        string_runs=True,
    )
    async with standin_service(config) as service:
        assert json.loads((tmp_path / "ready.json").read_text()) == {"url": service.url}
        async with AsyncElogClient(service.url, identity=identities / "user") as elog:
            await begin(elog)
            await elog.send(calls.start_run(EXPERIMENT, {"a": float("inf")}, run="7"))
    # Closing publishes what was taken before.
    world = World(broker.bootstrap, FAST_CLIENT, Airflow(), tmp_path)
    [run] = world.read("runs", 1)
    assert run["value"]["num"] == "7"
    assert run["value"]["params"] == {"a": float("inf")}


@pytest.mark.anyio
async def test_misbehaviour_is_made_on_request(broker: MockKafka, tmp_path: Path) -> None:
    await publish(broker, MisbehaviourConfig(lose=1.0))
    await publish(broker, MisbehaviourConfig(duplicate=1.0, reorder=20, seed=3))
    world = World(broker.bootstrap, FAST_CLIENT, Airflow(), tmp_path)
    got = [each["value"]["n"] for each in world.read("elog", 40)]
    assert sorted(got) == sorted([*range(20), *range(20)])
    assert got != sorted(got)


async def publish(broker: MockKafka, misbehaviour: MisbehaviourConfig) -> None:
    """Publish twenty messages."""
    publisher = Publisher({"bootstrap.servers": broker.bootstrap}, misbehaviour)
    for number in range(20):
        publisher.publish("elog", {"value": {"n": number}})
    task = asyncio.create_task(publisher.run())
    await publisher.sent()
    task.cancel()
    await asyncio.wait([task])


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "elog.yaml"
    path.write_text("kafka: a:1\nidentity: id\nport: 7\n")
    config = standin_config(path, {"port": 8, "ready_file": Path("r.json")})
    assert (config.kafka, config.port) == ("a:1", 8)
    assert config.identity == tmp_path / "id"
    assert config.ready_file == Path("r.json")
    with pytest.raises(InvalidConfigError, match=r"identity: is required"):
        standin_config(None, {"kafka": "a:1"})
    path.write_text("[]")
    with pytest.raises(InvalidConfigError, match=r"expected fields"):
        standin_config(path, {})
