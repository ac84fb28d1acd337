"""Small events, a waveform of 1 kB and two numbers, from their arrays to messages."""

import functools
from contextlib import ExitStack

from benchmarks.buffer.rows import Goal, Row, row
from benchmarks.streamer.options import Options
from benchmarks.streamer.ours import Messages, small_event
from benchmarks.streamer.turns import Case, costs
from benchmarks.streamer.upstream import message

# Events in a message -> how much of h5py's time ours may take.
GOALS = {1: 0.1, 10: 0.1, 100: 0.5, 1000: 0.5}
US = 1e6


def rows(options: Options) -> list[Row]:
    """Return the figures of this part."""
    event, cases = small_event(), dict[str, Case]()
    with ExitStack() as stack:
        for size in GOALS:
            for identified in (True, False):
                maker = Messages(event, size, identification=identified)
                stack.callback(maker.close)
                cases[f"{size} {identified}"] = Case(work=maker.next, units=size)
            work = functools.partial(message, [event] * size)
            cases[f"{size}"] = Case(work=work, units=size)
        found = {
            name: [US * each for each in values] for name, values in costs(cases, options).items()
        }
    return [
        row(
            f"events of 1 kB, batch {size}: CPU{'' if identified else ', without identification'}",
            "us/event",
            found[f"{size} {identified}"],
            baselines=found[f"{size}"],
            peer="h5py",
            goal=Goal("ratio", "<=", goal),
        )
        for size, goal in GOALS.items()
        for identified in (True, False)
    ]
