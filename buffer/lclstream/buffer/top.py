"""The figures of a buffer as a table that a person watches."""

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

UNITS = ("", "k", "M", "G", "T")
STEP = 1000
CLEAR = "\x1b[H\x1b[J"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
OTHER_SCREEN, FIRST_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
DEFAULT_SIZE = (100, 40)

Look = Callable[[], Mapping[str, Any]]


def scaled(value: float, unit: str = "") -> str:
    """Return a number in at most five characters, with a prefix of its unit."""
    size = float(value)
    for prefix in UNITS:
        if abs(size) < STEP or prefix == UNITS[-1]:
            digits = 0 if not prefix and float(size).is_integer() else 1
            return f"{size:.{digits}f} {prefix}{unit}".rstrip()
        size /= STEP
    raise AssertionError


def table(summary: Mapping[str, Any], rows: int | None = None) -> list[str]:
    """Return the lines of the table.

    Args:
        summary: as `GET /v1/statistics` answers it.
        rows: at most so many lines; None: all.
    """
    counters = summary["counters"]
    reason = f" ({summary['reason']})" if summary["reason"] else ""
    capacity = summary["capacity_bytes"] or 1
    lines = [
        f"{summary['state']}{reason}   lanes {summary['lanes']}   "
        f"producers {summary['producers']} (paused {summary['paused_producers']})   "
        f"consumers {summary['consumers']}",
        "in   " + _flow(summary, "in", "received"),
        "out  " + _flow(summary, "out", "sent"),
        f"wait {scaled(summary['queue_messages'])} messages, {scaled(summary['queue_bytes'], 'B')}"
        f", oldest {summary['oldest_s']:.1f} s   retained {scaled(summary['retained_messages'])}",
        f"held {scaled(summary['held_bytes'], 'B')} of {scaled(capacity, 'B')} "
        f"({100 * summary['held_bytes'] / capacity:.0f} %)",
    ]
    if summary.get("alarm"):
        lines.append(f"ALARM {summary['alarm']}")
    notable = {name: value for name, value in counters.items() if value and "_seen" not in name}
    lines.append("  ".join(f"{name} {value}" for name, value in notable.items()))
    lines.append("")
    lines += _peers([peer for peer in summary["peers"] if not peer["end"]])
    if rows is not None and len(lines) > rows:
        hidden = len(lines) - rows + 1
        lines = [*lines[: rows - 1], f"... {hidden} more"]
    return lines


def _flow(summary: Mapping[str, Any], side: str, tally: str) -> str:
    rate = scaled(summary.get(f"{side}_bytes_per_s", 0.0), "B/s")
    messages = scaled(summary.get(f"{side}_messages_per_s", 0.0))
    total = summary[tally]
    return (
        f"{rate:>12}  {messages:>9} messages/s   "
        f"altogether {scaled(total['messages'])} messages, {scaled(total['bytes'], 'B')}"
    )


def _peers(peers: list[Mapping[str, Any]]) -> Iterator[str]:
    yield (
        f"{'side':<5}{'peer':<28}{'messages':>11}{'bytes':>11}{'in flight':>11}"
        f"{'stalled':>9}{'since':>9}"
    )
    # Who is in trouble first.
    for peer in sorted(peers, key=lambda each: (-each["stalled_s"], each["side"])):
        name = peer["identity"] or peer["address"]
        stalled = f"{peer['stalled_s']:.1f} s" if peer["stalled_s"] else "-"
        yield (
            f"{peer['side']:<5}{name[:27]:<28}{scaled(peer['messages']):>11}"
            f"{scaled(peer['bytes'], 'B'):>11}{scaled(peer['in_flight_bytes'], 'B'):>11}"
            f"{stalled:>9}{peer['seconds']:>7.0f} s"
        )


def show_once(look: Look, output: TextIO) -> None:
    """Write the table once."""
    output.write("\n".join(table(look())) + "\n")


def watch(look: Look, output: TextIO, interval_s: float) -> None:
    """Show the table again and again, until `q` is pressed."""
    with _screen(output), _keys() as is_over:
        while True:
            columns, rows = _size(output)
            lines = [line[:columns] for line in table(look(), rows - 1)]
            output.write(CLEAR + "\r\n".join(lines))
            output.flush()
            if is_over(interval_s):
                return


def _size(output: TextIO) -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(output.fileno())
    except OSError:
        return DEFAULT_SIZE
    # A terminal that does not know its size says 0.
    return columns or DEFAULT_SIZE[0], rows or DEFAULT_SIZE[1]


@contextlib.contextmanager
def _screen(output: TextIO) -> Iterator[None]:
    """Leave what was on the terminal as it was."""
    output.write(OTHER_SCREEN + HIDE_CURSOR)
    try:
        yield
    finally:
        output.write(SHOW_CURSOR + FIRST_SCREEN)
        output.flush()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield what waits for a while, and tells whether `q` was pressed meanwhile."""
    if not sys.stdin.isatty():
        yield _just_wait
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)

    def is_over(interval_s: float) -> bool:
        deadline = time.monotonic() + interval_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            if select.select([number], [], [], remaining_s)[0]:
                pressed = os.read(number, 64)
                if not pressed or b"q" in pressed:
                    return True
        return False

    try:
        yield is_over
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _just_wait(interval_s: float) -> bool:
    time.sleep(interval_s)
    return False
