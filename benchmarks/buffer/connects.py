"""Whether 10,000 connections that come and go leave anything behind."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.buffer.cases import FAST, KIB, fast
from benchmarks.buffer.cells import Plan
from benchmarks.buffer.counters import Counters
from benchmarks.buffer.ends import Place, generator
from benchmarks.buffer.measure import until
from benchmarks.buffer.relays import Running, running, stop
from benchmarks.buffer.rows import Goal, Row, row

# The buffer remembers what the last thousand peers did.
FIRST, CONNECTS = 1500, 10_000
TIMEOUT_S = 300.0
MIB = 2**20
FLAT_MIB = 2.0


def connects(plan: Plan) -> list[Row]:
    """Let producers with one message each, and consumers, come and go."""
    rows = []
    for role in ("push", "pull"):
        with running(fast(), plan.folder) as relay, _consumer(relay, plan):
            _come_and_go(role, FIRST, relay, plan)
            before = relay.memory_bytes("VmRSS")
            _come_and_go(role, CONNECTS - FIRST, relay, plan)
            grown = relay.memory_bytes("VmRSS") - before
        who = "producers" if role == "push" else "consumers"
        rows.append(
            row(
                f"memory after {CONNECTS} {who} beyond that after {FIRST}: {FAST}",
                "MiB",
                [grown / MIB],
                goal=Goal("value", "<=", FLAT_MIB),
            )
        )
    return rows


def _place(plan: Plan, relay: Running, role: str, slot: int) -> Place:
    return Place(
        port=relay.port_in if role == "push" else relay.port_out,
        listens=False,
        size_bytes=KIB,
        batches=False,
        counters=plan.folder / "counters",
        slot=slot,
    )


@contextmanager
def _consumer(relay: Running, plan: Plan) -> Iterator[None]:
    """Have somebody take what producers bring."""
    with Counters(plan.folder / "counters", 2):
        command = generator(plan.program, "sp")("pull", _place(plan, relay, "pull", 1))
        with subprocess.Popen(command) as process:
            try:
                yield
            finally:
                stop([process])


def _come_and_go(role: str, count: int, relay: Running, plan: Plan) -> None:
    end = generator(plan.program, "sp", "--count", str(count))
    with Counters(plan.folder / "counters") as counters:
        counters.clear(range(1))
        command = end(f"{role}-come-and-go", _place(plan, relay, role, 0))
        with subprocess.Popen(command) as process:
            until(
                lambda: process.poll() == 0,
                TIMEOUT_S,
                f"{role}: {count} connects",
                [process, relay.process],
            )
