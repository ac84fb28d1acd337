"""What is measured, and which goals it has: one function for each part of the benchmark."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from benchmarks.buffer.cells import Case, Load, Outcome, Plan, measure
from benchmarks.buffer.ends import Ends, generator, python
from benchmarks.buffer.relays import Relay, buffer, libraries, library
from benchmarks.buffer.rows import (
    CPU_PER_GB,
    CPU_PER_MESSAGE,
    ENDS_CPU_PER_GB,
    PEAK_RSS,
    RATE,
    THROUGHPUT,
    Goal,
    Quantity,
    Row,
    best,
    compared,
    plain,
)

KIB = 1024
MIB = 1024 * KIB
FAST, SAFE = "buffer fast", "buffer safe"
PROXY, LOOP, DEVICE = "zmq.proxy", "pyzmq loop", "nng_device"
BULK = (THROUGHPUT, CPU_PER_GB, PEAK_RSS)
SMALL = (RATE, CPU_PER_MESSAGE, PEAK_RSS)
PRODUCERS = (1, 4, 16, 64, 128)
CONSUMERS = (1, 2, 4, 8, 16, 32)
LANES = (1, 2, 4)


def fast(*options: str) -> Relay:
    """Return the buffer as it is without options: `--delivery fast`."""
    return buffer(FAST, *options)


def safe(*options: str) -> Relay:
    """Return the buffer that keeps messages until they are acknowledged."""
    return buffer(SAFE, "--delivery", "safe", *options)


def quick_ends(plan: Plan, protocol: str, *options: str) -> Ends:
    """Return both ends at the speed of C."""
    end = generator(plan.program, protocol, *options)
    return Ends(end, end)


def acknowledging_ends(plan: Plan) -> Ends:
    """Return ends that name their stream and acknowledge every MiB, or every larger message."""
    return quick_ends(plan, "sp", "--own", "--ack", str(MIB))


def python_ends(kind: str) -> Ends:
    """Return both ends in Python."""
    return Ends(python(kind), python(kind))


def relay_cases(load: Load, plan: Plan) -> list[Case]:
    """Return our buffer, all others, and no relay at all, between ends at the speed of C."""
    return [
        *(
            Case(name=f"{protocol} direct", load=load, ends=quick_ends(plan, protocol))
            for protocol in ("raw", "sp")
        ),
        Case(name=FAST, load=load, relay=fast(), ends=quick_ends(plan, "sp")),
        Case(name=SAFE, load=load, relay=safe(), ends=acknowledging_ends(plan)),
        *(
            Case(name=relay.name, load=load, relay=relay, ends=quick_ends(plan, relay.protocol))
            for relay in libraries()
        ),
    ]


def bulk_cell(name: str, load: Load, plan: Plan) -> tuple[dict[str, Outcome], str, list[Row]]:
    """Measure one load beside all relays; return also the fastest of the others."""
    outcomes = measure(relay_cases(load, plan), plan)
    names = [relay.name for relay in libraries()]
    return outcomes, best(outcomes, names, THROUGHPUT), plain(name, outcomes, BULK)


def large(plan: Plan) -> list[Row]:
    """Messages of 1 and 16 MiB, one pair and four pairs of ends."""
    rows: list[Row] = []
    for size_bytes in (MIB, 16 * MIB):
        for pairs in (1, 4):
            name = f"{size_bytes // MIB} MiB, {pairs} -> {pairs}"
            load = Load(size_bytes=size_bytes, producers=pairs, consumers=pairs)
            outcomes, fastest, figures = bulk_cell(name, load, plan)
            wanted: Sequence[tuple[str, Quantity, str | None, Goal]] = (
                (FAST, CPU_PER_GB, None, Goal("value", "<=", 0.1)),
                (FAST, CPU_PER_GB, PROXY, Goal("ratio", "<=", 0.5)),
                (FAST, CPU_PER_GB, LOOP, Goal("ratio", "<=", 0.5)),
                (FAST, THROUGHPUT, fastest, Goal("ratio", ">=", 1.0 if pairs == 1 else 1.5)),
                (SAFE, CPU_PER_GB, PROXY, Goal("ratio", "<=", 0.6)),
                (SAFE, CPU_PER_GB, None, Goal("value", "<=", 0.12)),
                (SAFE, THROUGHPUT, FAST, Goal("ratio", ">=", 0.8)),
            )
            rows += [
                compared(name, outcomes, quantity, case, peer, goal)
                for case, quantity, peer, goal in wanted
            ]
            rows += figures
    return rows


def medium(plan: Plan) -> list[Row]:
    """Messages of 64 KiB, one for each call of the sender."""
    rows: list[Row] = []
    for pairs in (1, 4):
        name = f"64 KiB, {pairs} -> {pairs}"
        load = Load(size_bytes=64 * KIB, producers=pairs, consumers=pairs)
        outcomes, fastest, figures = bulk_cell(name, load, plan)
        rows += [
            compared(name, outcomes, THROUGHPUT, FAST, fastest, Goal("ratio", ">=", 1.5)),
            compared(name, outcomes, CPU_PER_GB, FAST, fastest, Goal("ratio", "<=", 1.0)),
            *figures,
        ]
    return rows


def small(plan: Plan) -> list[Row]:
    """Messages of 1 KiB from a sender that puts many into one call."""
    name = "1 KiB, batching sender"
    outcomes = measure(relay_cases(Load(size_bytes=KIB, batches=True), plan), plan)
    return [
        compared(name, outcomes, RATE, FAST, None, Goal("value", ">=", 2e6)),
        compared(name, outcomes, RATE, FAST, "sp direct", None),
        *plain(name, outcomes, SMALL),
    ]


def single(plan: Plan) -> list[Row]:
    """Messages of 1 KiB, one for each call: ends at the speed of C, of pynng, of pyzmq."""
    load = Load(size_bytes=KIB)
    name, pynng_name = "1 KiB, one message per send", "1 KiB, pynng ends"
    # A sender of pyzmq sends one message per call, and libzmq puts them together inside.
    helped = Case(
        name=f"{LOOP}, pyzmq ends", load=load, relay=library(LOOP), ends=python_ends("pyzmq")
    )
    outcomes = measure([*relay_cases(load, plan), helped], plan)
    cheapest = min(
        (LOOP, helped.name),
        key=lambda case: min(
            (sample.cpu_us_per_message for sample in outcomes[case].samples), default=1e9
        ),
    )
    pynng_cases = [
        Case(name="pynng direct", load=load, ends=python_ends("pynng")),
        Case(name=FAST, load=load, relay=fast(), ends=python_ends("pynng")),
        *(
            Case(name=kind, load=load, relay=library(kind), ends=python_ends("pynng"))
            for kind in (DEVICE, "pynng loop")
        ),
    ]
    by_pynng = measure(pynng_cases, plan)
    return [
        compared(name, outcomes, CPU_PER_MESSAGE, FAST, cheapest, Goal("ratio", "<=", 1.0)),
        # At the pace of pynng each message is an event of its own, which libzmq's ends never are.
        compared(pynng_name, by_pynng, CPU_PER_MESSAGE, FAST, DEVICE, None),
        compared(pynng_name, by_pynng, RATE, FAST, DEVICE, Goal("ratio", ">=", 1.5)),
        *plain(name, outcomes, SMALL),
        *plain(pynng_name, by_pynng, SMALL),
    ]


def endpoints(plan: Plan) -> list[Row]:
    """Ends in Python that are connected directly."""
    rows: list[Row] = []
    kinds = ("own", "pynng", "pyzmq")
    for size_bytes in (KIB, 64 * KIB, MIB):
        load = Load(size_bytes=size_bytes, batches=True)
        name = f"{size_bytes // KIB} KiB, ends without a relay"
        quantities = (RATE if size_bytes == KIB else THROUGHPUT, ENDS_CPU_PER_GB)
        cases = [Case(name=kind, load=load, ends=python_ends(kind)) for kind in kinds]
        outcomes = measure(
            [*cases, Case(name="sp in C", load=load, ends=quick_ends(plan, "sp"))], plan
        )
        other = best(outcomes, kinds[1:], quantities[0])
        at_least = Goal("ratio", ">=", 1.0)
        rows += [
            compared(name, outcomes, quantities[0], "own", other, at_least),
            *plain(name, outcomes, quantities),
        ]
    return rows


def growth(plan: Plan) -> list[Row]:
    """More producers, more consumers, more lanes."""

    def cases(relays: Mapping[str, Relay], loads: Mapping[str, Load]) -> list[Case]:
        return [
            Case(name=name, load=loads[name], relay=relays[name], ends=quick_ends(plan, "sp"))
            for name in relays
        ]

    four = Load(size_bytes=MIB, producers=4, consumers=4)
    producers = {f"{count} -> 4": replace(four, producers=count) for count in PRODUCERS}
    consumers = {f"4 -> {count}": replace(four, consumers=count) for count in CONSUMERS}
    lanes = {
        f"{count} lanes": fast("--lanes", str(count)) if count > 1 else fast() for count in LANES
    }
    rows: list[Row] = []
    for what, loads in (("producers", producers), ("consumers", consumers)):
        outcomes = measure(cases({name: fast() for name in loads}, loads), plan)
        rows += plain(f"growth of {what}, 1 MiB", outcomes, BULK)
    for size_bytes in (64 * KIB, MIB):
        loads = {name: replace(four, size_bytes=size_bytes) for name in lanes}
        name = f"growth of lanes, {size_bytes // KIB} KiB, 4 -> 4"
        rows += plain(name, measure(cases(lanes, loads), plan), BULK)
    return rows


Part = Callable[[Plan], list[Row]]
