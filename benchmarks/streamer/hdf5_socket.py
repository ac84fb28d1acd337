"""Frames of 4 MB from the arrays of their events into a socket, without compression."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.buffer.rows import Goal, Row, row
from benchmarks.streamer.options import Options
from benchmarks.streamer.ours import Messages, Values, frame_event
from benchmarks.streamer.sinks import Sink, sink
from benchmarks.streamer.turns import Case, costs
from benchmarks.streamer.upstream import HIGH_WATER_MARK, message

from lclstream.buffer import Push

BATCHES = (1, 10)
US = 1e6
UPSTREAM, HELD, COPIED, ZMQ = "h5py and zmq", "held", "copied", "copied, zmq"


def rows(options: Options) -> list[Row]:
    """Return the figures of this part."""
    with ExitStack() as stack:
        cases = _cases(stack)
        found = {
            name: [US * each for each in values] for name, values in costs(cases, options).items()
        }
    unit, what = "us/event", "frames of 4 MB, array to socket: CPU"
    made = [
        row(
            f"{what}, {kind}, batch {size}",
            unit,
            found[f"{kind} {size}"],
            baselines=found[f"{UPSTREAM} {size}"],
            peer=UPSTREAM,
            goal=Goal("ratio", "<=", 0.2),
        )
        for size in BATCHES
        for kind in (HELD, COPIED, ZMQ)
    ]
    made += [
        row(
            f"{what}, {kind}, batch {BATCHES[1]} against batch {BATCHES[0]}",
            unit,
            found[f"{kind} {BATCHES[1]}"],
            baselines=found[f"{kind} {BATCHES[0]}"],
            peer=f"batch {BATCHES[0]}",
            # Both are the same work, and chance decides which is cheaper.
            goal=Goal("ratio", "<=", 1.1),
        )
        for kind in (HELD, COPIED, ZMQ)
    ]
    return made


def _cases(stack: ExitStack) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    import zmq

    push = Push("tcp://127.0.0.1:0", listen=True)
    ours = stack.enter_context(sink("own", push.urls[0]))
    # All has arrived by then.
    stack.callback(push.abort)
    context = stack.enter_context(zmq.Context())
    socket = stack.enter_context(context.socket(zmq.PUSH))
    socket.linger = 0
    socket.sndhwm = HIGH_WATER_MARK
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    theirs = stack.enter_context(sink("pyzmq", f"tcp://127.0.0.1:{port}"))
    event = frame_event()
    for size in BATCHES:
        for kind in (HELD, COPIED):
            maker = Messages(event, size, lasting=kind == HELD)
            stack.callback(maker.close)
            work = _ours(maker, push, ours)
            cases[f"{kind} {size}"] = Case(work=work, units=size, settle=ours.settle)
        maker = Messages(event, size, library="zmq")
        stack.callback(maker.close)
        work = _ours_by_zmq(maker, socket, theirs)
        cases[f"{ZMQ} {size}"] = Case(work=work, units=size, settle=theirs.settle)
        work = _upstream([event] * size, socket, theirs)
        cases[f"{UPSTREAM} {size}"] = Case(work=work, units=size, settle=theirs.settle)
    return cases


def _ours(maker: Messages, push: Push, to: Sink) -> Callable[[], None]:
    def work() -> None:
        made = maker.next()
        push.send(made.parts)
        to.sent += made.nbytes

    return work


def _ours_by_zmq(maker: Messages, socket: Any, to: Sink) -> Callable[[], None]:
    def work() -> None:
        made = maker.next()
        # As `ZmqPushHandler` sends it.
        socket.send(made.joined(), copy=False, track=True).wait()
        to.sent += made.nbytes

    return work


def _upstream(events: Sequence[Values], socket: Any, to: Sink) -> Callable[[], None]:
    def work() -> None:
        made = message(events)
        socket.send(made)
        to.sent += len(made)

    return work
