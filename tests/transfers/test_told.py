"""What jobs and jobs services tell the service: reports and callbacks, true and forged."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.transfers.world import Service, internal, wait_end, wait_for

from lclstream.core.errors import LclstreamError, NotAuthorizedError, NotFoundError
from lclstream.core.http import raise_for_error
from lclstream.core.ledger import Report, TallyModel
from lclstream.identity.client import sync_client
from lclstream.jobs import signing
from lclstream.jobs.states import JobState
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.service import read_secret
from lclstream.transfers.specs import Specs
from lclstream.transfers.states import Phase

STATES = (JobState.QUEUED, JobState.ACTIVE)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def mona(service: Service) -> Iterator[TransfersClient]:
    with service.client() as client:
        yield client


@pytest.fixture
def site(service: Service) -> Iterator[httpx.Client]:
    """What the jobs service calls with; errors are answers."""
    with sync_client(service.world.identity("jobs"), service.url) as http:
        http.event_hooks = {"request": [], "response": []}
        yield http


def secret_of(service: Service, key: str) -> str:
    secret = read_secret(service.folder / "transfers.db.secret")
    return Specs(lambda: "", Path(), service.world.authority, secret).secret(key)


def send(
    http: httpx.Client, path: str, body: bytes, signature: str | bytes | None = None
) -> httpx.Response:
    raw = signature.encode() if isinstance(signature, str) else signature
    headers = {signing.SIGNATURE.encode(): raw} if raw is not None else {}
    return http.post(f"/v1/callback/{path}", content=body, headers=headers)


def stuck(mona: TransfersClient) -> tuple[int, str, str]:
    """Return a transfer whose buffer job runs and does nothing, the job's key and its id."""
    number = mona.create({"streamer": internal(), "site": "stuck"}).id
    info = wait_for(
        mona, number, lambda seen: seen.jobs[0].state is JobState.ACTIVE, "buffer active"
    )
    return number, f"transfer-{number}-buffer-buffer-0", info.jobs[0].jobid


def test_callbacks_true_and_forged(
    service: Service, mona: TransfersClient, site: httpx.Client
) -> None:
    number, key, jobid = stuck(mona)
    secret = secret_of(service, key)
    true = json.dumps({"jobid": jobid, "jobndx": 1, "state": "active", "info": ""}).encode()
    forged = json.dumps({"jobid": jobid, "jobndx": 1, "state": "failed", "info": "9"}).encode()
    unknown = json.dumps({"jobid": "1.000", "jobndx": 1, "state": "failed"}).encode()
    signature = signing.sign(secret, true)
    # Doubled and late ones are taken and change nothing.
    for state, _ in itertools.product(STATES, range(2)):
        body = json.dumps({"jobid": jobid, "jobndx": 1, "state": state}).encode()
        answer = send(site, "forwarder", body, signing.sign(secret, body))
        assert (answer.status_code, answer.json()) == (200, True)
    refused = [
        (send(site, "forwarder", true), 403),
        (send(site, "forwarder", forged, signature), 403),
        (send(site, "forwarder", true, "sha256=" + "0" * 64), 403),
        (send(site, "forwarder", true, b"\xff\xfe"), 403),
        (send(site, "producer", true, signature), 404),
        (send(site, "forwarder", unknown, signing.sign(secret, unknown)), 404),
        (send(site, "forwarder", b"{}", signing.sign(secret, b"{}")), 422),
        (send(site, "owner", true, signature), 422),
        (send(site, "forwarder", b"x" * 10_000_000, signature), 413),
    ]
    assert [answer.status_code for answer, _ in refused] == [status for _, status in refused]
    assert refused[0][0].json()["detail"] == "x-hub-signature-256 header is missing!"
    info = mona.get(number)
    assert (info.phase, info.jobs[0].state) == (Phase.STARTING, JobState.ACTIVE)
    # A true end is believed, whatever comes first.
    body = json.dumps({"jobid": jobid, "jobndx": 0, "state": "canceled", "info": ""}).encode()
    assert send(site, "forwarder", body, signing.sign(secret, body)).status_code == 200
    assert mona.get(number).reason == "buffer canceled"
    mona.cancel(number, now=True)


def test_job_of_another_authority_is_nobody(service: Service, mona: TransfersClient) -> None:
    number = mona.create({"streamer": internal(), "hold": True}).id
    report = {"hop": "buffer", "peer": "forged", "final": True}
    with sync_client(service.world.foreign_job(f"job:{number}:buffer"), service.url) as http:
        with pytest.raises(NotFoundError):
            http.get(f"/v1/transfers/{number}")
        with pytest.raises(NotFoundError):
            http.post(f"/v1/transfers/{number}/reports", json=report)
        with pytest.raises(NotAuthorizedError, match="may not ask for transfers"):
            http.post("/v1/transfers", json={"streamer": internal()})
    mona.cancel(number, now=True)


def test_reports_are_taken_from_the_right_job_only(service: Service, mona: TransfersClient) -> None:
    number, _, _ = stuck(mona)
    other = mona.create({"streamer": internal(), "hold": True}).id
    authority = service.world.authority
    for role in ("buffer", "consumer"):
        issued = authority.issue_job(f"job:{number}:{role}")
        issued.save(service.folder / f"{number}-{role}")
    report = Report(hop="buffer", peer="forged", received=TallyModel(messages=3))
    body = report.model_dump(mode="json", exclude_none=True)
    path = f"/v1/transfers/{number}/reports"
    with sync_client(service.folder / f"{number}-consumer", service.url) as http:
        with pytest.raises(NotAuthorizedError, match="may not report as buffer"):
            http.post(path, json=body)
        assert http.post(path, json={**body, "hop": "consumer"}).json()["command"] == "continue"
        assert http.get(f"/v1/transfers/{number}").json()["id"] == number
        with pytest.raises(NotAuthorizedError, match=r"may not change transfer"):
            http.delete(f"/v1/transfers/{number}")
        with pytest.raises(NotFoundError):
            http.post(f"/v1/transfers/{other}/reports", json={**body, "hop": "consumer"})
        with pytest.raises(NotAuthorizedError, match="may not ask for transfers"):
            http.post("/v1/transfers", json={"streamer": internal()})
    with sync_client(service.folder / f"{number}-buffer", service.url) as http:
        bad = {"in": ["tcp://h:1; rm -rf /"], "out": ["tcp://h:1"]}
        with pytest.raises(LclstreamError, match="must look like tcp://HOST:PORT"):
            http.post(path, json={**body, "addresses": bad})
        assert http.post(path, json=body).json()["command"] == "continue"
    with pytest.raises(NotAuthorizedError, match="uid:mona may not report as buffer"):
        mona.report(number, report)
    with service.client("otto") as otto, pytest.raises(NotFoundError):
        otto.report(number, Report(hop="consumer", peer="x"))
    mine = Report(hop="consumer", peer="laptop", received=TallyModel(messages=1))
    assert mona.report(number, mine).command == "continue"
    assert mona.get(number).ledger.hops[-1].tally.messages == 1 + 3
    mona.cancel(number, now=True)
    mona.cancel(other)
    wait_end(mona, number)
    assert mona.report(number, mine).command == "stop"


def test_nothing_without_a_certificate(service: Service) -> None:
    with (
        httpx.Client(verify=False, trust_env=False) as http,  # noqa: S501
        pytest.raises(httpx.TransportError),
    ):
        raise_for_error(http.get(f"{service.url}/health"))
