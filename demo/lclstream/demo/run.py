"""One run of the demo: begun in the logbook, followed to its balanced ledger."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from lclstream.core.errors import NotFoundError, UnavailableError
from lclstream.demo.beamline import DAG, Beamline
from lclstream.demo.progress import MEGABYTE, Figures, Progress
from lclstream.demo.workflow import Source
from lclstream.transfers.client import TransfersClient
from lclstream.transfers.models import HopInfo, TransferInfo

# From the run event to a transfer: the watcher, Airflow's scheduler and one task.
TRANSFER_TIMEOUT_S = 120.0
# From the end of the transfer to the end of the DAG run: the teardown and its post to the Elog.
DAG_TIMEOUT_S = 120.0
LOOK_S = 0.5
POLL_S = 0.1
LOG_TAIL = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of the run."""

    transfer: TransferInfo
    dag_run: str
    dag_state: str
    counters: dict[str, str]
    """What reached the logbook."""
    first_message_s: float | None
    """Seconds from the run event to the first message at a consumer."""
    total_s: float
    """Seconds from the run event to the end of the DAG run."""

    @property
    def ok(self) -> bool:
        """Whether everything ended as it should."""
        return bool(
            self.transfer.phase == "completed"
            and self.transfer.ledger.balanced
            and self.dag_state == "success"
        )


def play(beamline: Beamline, source: Source, progress: Progress) -> Outcome:
    """Begin a run, follow its transfer, and end the run when all its events are accounted for.

    Raises:
        UnavailableError: the run started no transfer, or its DAG run did not end in time.
    """
    progress.restart_clock()
    run = beamline.begin_run(source.experiment, source.run)
    progress.step("run", f"{source.experiment} run {run} has begun, {source.description}")
    try:
        dag_run = _wait_dag_run(beamline, source.experiment, run)
        progress.step("DAG", f"{DAG}, {dag_run}")
        with beamline.transfers() as transfers:
            transfer = _wait_transfer(transfers, source.experiment, run)
            info, first_s = _follow(transfers, transfer, progress)
    finally:
        beamline.end_run(source.experiment)
    state = beamline.airflow.wait_run(DAG, dag_run, DAG_TIMEOUT_S)
    progress.step("DAG", f"ended as {state}")
    posted = beamline.counters(source.experiment, dag_run)
    if posted:
        progress.step("elog", ", ".join(f"{name} {value}" for name, value in posted.items()))
    return Outcome(
        counters=posted,
        transfer=info,
        dag_run=dag_run,
        dag_state=state,
        first_message_s=first_s,
        total_s=progress.elapsed_s,
    )


def _wait_dag_run(beamline: Beamline, experiment: str, run: int) -> str:
    start = f"arp:{experiment}:r{run}:"
    deadline = time.monotonic() + TRANSFER_TIMEOUT_S
    while time.monotonic() < deadline:
        found = beamline.airflow.call("GET", f"/dags/{DAG}/dagRuns", order_by="-id", limit=50)
        for each in found["dag_runs"]:
            if each["dag_run_id"].startswith(start):
                return str(each["dag_run_id"])
        time.sleep(POLL_S)
    watcher = beamline.services["watcher"]
    raise UnavailableError(f"run {run} started no DAG run; the watcher says:\n{watcher.log_tail()}")


def _wait_transfer(transfers: TransfersClient, experiment: str, run: int) -> int:
    deadline = time.monotonic() + TRANSFER_TIMEOUT_S
    while time.monotonic() < deadline:
        for status in transfers.list(limit=20):
            if (status.experiment, str(status.run)) == (experiment, str(run)):
                return status.id
        time.sleep(POLL_S)
    raise UnavailableError(f"the DAG run of run {run} reserved no transfer: see Airflow's logs")


def _follow(
    transfers: TransfersClient, transfer: int, progress: Progress
) -> tuple[TransferInfo, float | None]:
    """Show a transfer until it is final; return it, and when the first message had arrived."""
    figures = Figures()
    first_s: float | None = None
    info = transfers.get(transfer)
    while True:
        for name, text in _steps(info):
            progress.step(name, text)
        progress.show(figures.update(info.model_dump(mode="json")))
        if first_s is None and figures.hop("consumers.received").get("messages", 0):
            first_s = progress.elapsed_s
            progress.step("data", "the first message is at a consumer")
        if info.is_final:
            return info, first_s
        info = transfers.wait(transfer, info.version, LOOK_S)


def _steps(info: TransferInfo) -> Iterator[tuple[str, str]]:
    """Yield the steps that a transfer has reached."""
    for job in info.jobs:
        if job.jobid:
            number = f" {job.index + 1}" if job.role == "consumer" else ""
            yield f"{job.role}{number}", f"job {job.jobid} at {job.site} is {job.state}"
    if info.url:
        yield "buffer", f"listens, consumers pull from {info.url}"
    reason = f": {info.reason}" if info.reason else ""
    yield "transfer", f"{info.id} is {info.phase}{reason}"


def hop_lines(info: TransferInfo) -> Iterator[str]:
    """Yield one line for each hop of a ledger."""
    for hop in info.ledger.hops:
        plural = "" if hop.peers == 1 else "es"
        digest = hop.tally.digest or "not computed"
        yield (
            f"{hop.name:<19}{hop.tally.messages:>7} messages {hop.tally.bytes / MEGABYTE:>9.1f} MB"
            f"  digest {digest:<16}  {_events(hop):<12}  {hop.peers} process{plural}"
        )


def _events(hop: HopInfo) -> str:
    # The buffer does not look into messages.
    return f"{hop.tally.events} events" if hop.tally.events else ""


def verdict(info: TransferInfo) -> str:
    """Return the last line: whether the ledger balances, else which hop differs."""
    if info.ledger.balanced and info.phase == "completed":
        tallies = {hop.name: hop.tally for hop in info.ledger.hops}
        sent = tallies["producers.sent"].events
        received = tallies.get("consumers.received")
        return f"ledger balanced: {sent} events sent, {received.events if received else 0} received"
    difference = info.ledger.difference or info.reason or f"the transfer is {info.phase}"
    return f"ledger not balanced: {difference}"


def job_logs(beamline: Beamline, info: TransferInfo) -> Iterator[tuple[str, str]]:
    """Yield name and text of what the jobs of a failed transfer had to say."""
    with beamline.transfers() as transfers:
        for job in info.jobs:
            if not job.jobid:
                continue
            try:
                logs = transfers.logs(info.id, job.jobid)
            except NotFoundError:
                continue
            for name, text in logs.items():
                if text.strip():
                    yield f"{job.role} {job.name} {job.index}, {name}", text.strip()[-LOG_TAIL:]
