"""Whether a transfer ended well: what every job and process of it must have said and done."""

from lclstream.jobs.states import JobState
from lclstream.transfers.ledger import Ledger
from lclstream.transfers.record import Job, Role, Transfer


def ended_badly(job: Job) -> str:
    """Return a sentence about a job that did not complete."""
    info = f": {job.info}" if job.info else ""
    return f"{job.title} {job.state.value}{info}"


def expected_producers(transfer: Transfer) -> int:
    """Return how many producer processes must report their end."""
    return transfer.ranks * len(transfer.of_role(Role.PRODUCER))


def is_settled(transfer: Transfer, ledger: Ledger) -> bool:
    """Return whether every process that must report its end, or that reported, has done so."""
    return (
        ledger.finals(Role.PRODUCER) >= expected_producers(transfer)
        and ledger.finals(Role.BUFFER) >= 1
        and not any(ledger.unfinished(role) for role in Role)
    )


def faults(transfer: Transfer, ledger: Ledger) -> list[str]:
    """Return all reasons why an ended transfer is not complete; empty if it is."""
    found = [ended_badly(job) for job in transfer.jobs if not _ended_well(job)]
    for role in Role:
        found += ledger.faults(role)
        found += [f"{role.value} {peer}: no final report" for peer in ledger.unfinished(role)]
    finals, expected = ledger.finals(Role.PRODUCER), expected_producers(transfer)
    if finals < expected:
        found.append(f"only {finals} of {expected} producer processes reported their end")
    if not ledger.of(Role.BUFFER):
        found.append("the buffer never reported")
    return found + ledger.differences()


def _ended_well(job: Job) -> bool:
    # Before the clean-up the machine cancels nothing but consumer jobs that nobody misses.
    dismissed = job.canceling and job.state is JobState.CANCELED
    return job.state is JobState.COMPLETED or dismissed
