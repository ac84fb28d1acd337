"""The ledger of one transfer: the latest report of every process, summed up per hop.

The hops in the order in which a message passes them: `producers.sent`, `buffer.received`,
`buffer.sent`, `consumers.received`. The last one counts only where consumers report; a plain
NNG program does not.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from lclstream.core.errors import TooLargeError
from lclstream.core.ledger import Report, Tally, TallyModel
from lclstream.transfers.record import Role

# A transfer has at most some thousand ranks and consumers; more is a fault of the reporter.
MOST_PEERS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HopTotals:
    """What all processes of one hop counted together."""

    name: str
    peers: int
    tally: TallyModel


@dataclass(slots=True)
class Ledger:
    """Holds the latest report of each process; a final report is never replaced."""

    reports: dict[tuple[Role, str], Report] = field(default_factory=dict, init=False)
    # Sums over all hops, kept because each report of each rank asks for them.
    _messages: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)
    _producing: int = field(default=0, init=False)

    def add(self, report: Report) -> bool:
        """Take in a report and return whether it is the first final one of its process.

        Raises:
            TooLargeError: more processes report than a transfer can have.
        """
        key = (Role(report.hop), report.peer)
        known = self.reports.get(key)
        if known is not None and known.final:
            return False
        if known is None and len(self.reports) >= MOST_PEERS:
            raise TooLargeError(f"more than {MOST_PEERS} processes report to this transfer")
        self.reports[key] = report
        if known is not None:
            self._count(known, -1)
        self._count(report, 1)
        return report.final

    def _count(self, report: Report, sign: int) -> None:
        for tally in (report.received, report.sent):
            if tally is not None:
                self._messages += sign * tally.messages
                self._bytes += sign * tally.bytes
        self._producing += sign * (report.hop == Role.PRODUCER.value and not report.final)

    def of(self, role: Role) -> list[Report]:
        """Return the reports of one role."""
        return [report for (whose, _), report in self.reports.items() if whose is role]

    def hops(self) -> list[HopTotals]:
        """Return the totals per hop, in the order of the stream."""
        producers, buffers = self.of(Role.PRODUCER), self.of(Role.BUFFER)
        consumers = self.of(Role.CONSUMER)
        totals = [
            _total("producers.sent", [report.sent for report in producers]),
            _total("buffer.received", [report.received for report in buffers]),
            _total("buffer.sent", [report.sent for report in buffers]),
        ]
        if consumers:
            totals.append(_total("consumers.received", [each.received for each in consumers]))
        return totals

    def differences(self) -> list[str]:
        """Return one sentence for each pair of hops that do not agree."""
        hops = self.hops()
        # A buffer that splices does not see what it passes on; the ends of the stream do.
        digested = [hop for hop in hops if hop.tally.digest]
        found = [text for before, after in pairwise(hops) if (text := _compare(before, after))]
        found += [
            text
            for before, after in pairwise(digested)
            if (text := _compare_digests(before, after))
        ]
        if not found and len(hops) > 3 and (text := self._compare_events(hops[0], hops[-1])):
            found.append(text)
        return found

    def _compare_events(self, sent: HopTotals, received: HopTotals) -> str:
        # A consumer that only stores messages does not know how many events are inside.
        looks_inside = all(
            report.received.events > 0
            for report in self.of(Role.CONSUMER)
            if report.received is not None and report.received.messages > 0
        )
        if not looks_inside or sent.tally.events == received.tally.events:
            return ""
        return (
            f"{received.name} has {received.tally.events} events, "
            f"{sent.name} has {sent.tally.events}"
        )

    @property
    def is_begun(self) -> bool:
        """Whether anybody has reported."""
        return bool(self.reports)

    def activity(self) -> tuple[int, ...]:
        """Return figures that change when a message moves or a producer comes or goes."""
        return self._messages, self._bytes, self._producing

    def finals(self, role: Role) -> int:
        """Return how many processes of a role have reported their end."""
        return sum(report.final for report in self.of(role))

    def unfinished(self, role: Role) -> list[str]:
        """Return the processes of a role that reported, but not their end."""
        return [report.peer for report in self.of(role) if not report.final]

    def faults(self, role: Role) -> list[str]:
        """Return what the processes of a role said went wrong."""
        return [
            f"{role.value} {report.peer}: {report.error or 'ended with a fault'}"
            for report in self.of(role)
            if report.final and not report.ok
        ]


def _total(name: str, tallies: Iterable[TallyModel | None]) -> HopTotals:
    counted = list(tallies)
    total = Tally()
    for tally in counted:
        if tally is not None:
            total.merge(tally)
    return HopTotals(name=name, peers=len(counted), tally=total.snapshot())


def _compare(before: HopTotals, after: HopTotals) -> str:
    one, two = before.tally, after.tally
    if one.messages != two.messages:
        way = "fewer" if two.messages < one.messages else "more"
        count = abs(two.messages - one.messages)
        plural = "" if count == 1 else "s"
        return (
            f"{after.name} has {count} message{plural} ({abs(two.bytes - one.bytes)} bytes) "
            f"{way} than {before.name} ({two.messages} of {one.messages})"
        )
    if one.bytes != two.bytes:
        return f"{after.name} has {two.bytes} bytes, {before.name} has {one.bytes}"
    return ""


def _compare_digests(before: HopTotals, after: HopTotals) -> str:
    if _compare(before, after) or before.tally.digest == after.tally.digest:
        # Where the counts differ the digests do as well.
        return ""
    return f"{after.name} has other contents than {before.name}: the digests differ"
