"""The journal, and what it is made of, against trivial models and with crashes anywhere."""

import errno
import logging
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from lclstream.buffer import journal as journal_module
from lclstream.buffer import ledger as ledger_module
from lclstream.buffer.addresses import Address
from lclstream.buffer.config import BufferConfig
from lclstream.buffer.disklog import Entry, Span
from lclstream.buffer.journal import Journal, on_remembered_ports, remember_ports
from lclstream.buffer.peers import Side
from lclstream.buffer.ranges import Ranges
from lclstream.buffer.records import HEAD_BYTES, Record, pack, unpack
from lclstream.buffer.sp import header
from lclstream.buffer.store import Consumption, Extent, Found, Spill, Store
from lclstream.core.errors import InvalidConfigError
from lclstream.core.ledger import Tally

FILE_BYTES = 3000
LEDGER_BYTES = 2000


def entry(payloads: list[bytes], stream: int = 0, sequence: int = 0) -> Entry:
    tally = Tally()
    for payload in payloads:
        tally.add(payload)
    run = b"".join(header(len(payload)) + payload for payload in payloads)
    return Entry(memoryview(run), tally, stream, sequence)


def open_journal(folder: Path) -> Journal:
    return Journal(folder, file_bytes=FILE_BYTES, ledger_bytes=LEDGER_BYTES)


def waiting(journal: Journal) -> list[Found]:
    """Return everything that a journal still holds from before."""
    found: list[Found] = []
    for extent in journal.recovered.extents:
        rest: Extent | None = extent
        while rest is not None:
            some, rest = journal.read(rest, 2)
            found += some
    return found


def payloads_of(found: list[Found]) -> list[bytes]:
    payloads = []
    for each in found:
        place, start, end = each.span
        data = os.pread(place.file.fd, end - start, place.offset + start)
        while data:
            size = int.from_bytes(data[:8])
            payloads.append(data[8 : 8 + size])
            data = data[8 + size :]
    return payloads


# Ranges.


class RangesMachine(RuleBasedStateMachine):
    """A set of ranges is a set of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges = Ranges()
        self.model: set[int] = set()

    @rule(start=st.integers(0, 60), length=st.integers(0, 12))
    def add(self, start: int, length: int) -> None:
        self.ranges.add(start, start + length)
        self.model |= set(range(start, start + length))

    @rule(start=st.integers(0, 60), length=st.integers(0, 30))
    def missing(self, start: int, length: int) -> None:
        gaps = self.ranges.missing(start, start + length)
        numbers = [number for begin, end in gaps for number in range(begin, end)]
        assert numbers == [n for n in range(start, start + length) if n not in self.model]
        assert all(begin < end for begin, end in gaps)

    @invariant()
    def is_tidy(self) -> None:
        pairs = list(self.ranges)
        covered = set(range(self.ranges.floor))
        for begin, end in pairs:
            covered |= set(range(begin, end))
        assert covered == self.model
        edges = [self.ranges.floor, *(edge for pair in pairs for edge in pair)]
        assert edges == sorted(set(edges))
        assert list(self.ranges.copy()) == pairs


TestRanges = RangesMachine.TestCase
TestRanges.settings = settings(max_examples=60, deadline=None)


# Records.


@given(
    st.builds(
        Record,
        *[st.integers(0, 2**64 - 1)] * 4,
        st.integers(0, 2**32 - 1),
        *[st.none() | st.integers(0, 2**64 - 1)] * 2,
        st.integers(0, 2**64 - 1),
    ),
    st.integers(0, 2**64 - 1),
    st.integers(0, HEAD_BYTES - 1),
    st.integers(0, 7),
)
def test_head_of_record_is_intact_or_refused(record: Record, key: int, at: int, bit: int) -> None:
    head = pack(record, key)
    assert len(head) == HEAD_BYTES
    assert unpack(head, key) == record
    assert unpack(head[:-1], key) is None
    assert unpack(head, (key + 1) % 2**64) is None
    damaged = bytearray(head)
    damaged[at] ^= 1 << bit
    assert unpack(bytes(damaged), key) is None


# The journal with crashes.


class Crash(BaseException):
    """The host dies here."""


def within(data: st.DataObject, low: int, high: int, label: str) -> int:
    # The key of a journal is random, and with it sizes are.
    return low + round(data.draw(st.integers(0, 1000), label) / 1000 * (high - low))


class JournalMachine(RuleBasedStateMachine):
    """What was acknowledged and not consumed is there after any crash, in order.

    Messages that were being written when the host died may be there or not, from the first one
    on; consumption that was not on disk may be forgotten.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.number = 0

    @initialize()
    def begin(self) -> None:
        self.journal = open_journal(self.path)
        self.held: list[bytes] = []
        self.unsure: list[bytes] = []
        """Consumed, but that may not be on disk."""
        self.spans: dict[bytes, Span] = {}
        self.partly: dict[int, list[bytes]] = {}
        self.accepted: dict[int, int] = {}
        self.received = Tally()

    def make(self, sizes: list[list[int]], stream: int) -> list[tuple[Entry, list[bytes]]]:
        made = []
        sequence = self.accepted.get(stream, 0)
        for run in sizes:
            payloads = []
            for size in run:
                self.number += 1
                payloads.append(f"{self.number:06d}".encode() + bytes(size))
            made.append((entry(payloads, stream, sequence), payloads))
            sequence += len(payloads)
        return made

    def note(self, made: tuple[Entry, list[bytes]]) -> None:
        each, payloads = made
        self.received.merge(each.tally)
        if each.stream:
            self.accepted[each.stream] = each.sequence + len(payloads)
        self.held += payloads

    RUNS = st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=4), min_size=1, max_size=4)

    @rule(sizes=RUNS, stream=st.integers(0, 2))
    def append(self, sizes: list[list[int]], stream: int) -> None:
        made = self.make(sizes, stream)
        outcome = self.journal.append([each for each, _ in made])
        assert outcome.refusal is None
        assert len(outcome.places) == len(made)
        for (each, payloads), place in zip(made, outcome.places, strict=True):
            self.note((each, payloads))
            start = 0
            for payload in payloads:
                end = start + 8 + len(payload)
                self.spans[payload] = Span(place, start, end)
                start = end

    @rule(
        data=st.data(),
        sizes=RUNS,
        stream=st.integers(0, 2),
        failure=st.sampled_from(["write", "sync"]),
    )
    def disk_refuses(
        self, data: st.DataObject, sizes: list[list[int]], stream: int, failure: str
    ) -> None:
        made = self.make(sizes, stream)
        patch = pytest.MonkeyPatch()
        room = data.draw(st.integers(0, 600), "room")
        pwritev = os.pwritev

        def write(fd: int, parts: list[bytes], offset: int) -> int:
            nonlocal room
            count = pwritev(fd, [b"".join(parts)[:room]], offset) if room else 0
            room -= count
            if not count:
                raise OSError(errno.ENOSPC, "full")
            return count

        def sync(fd: int) -> None:
            raise OSError(errno.EIO, "broken")

        if failure == "write":
            patch.setattr(os, "pwritev", write)
        else:
            patch.setattr(os, "fdatasync", sync)
        try:
            outcome = self.journal.append([each for each, _ in made])
        finally:
            patch.undo()
        for (each, payloads), place in zip(made, outcome.places, strict=False):
            self.note((each, payloads))
            start = 0
            for payload in payloads:
                self.spans[payload] = Span(place, start, start + 8 + len(payload))
                start += 8 + len(payload)
        if len(outcome.places) < len(made):
            assert outcome.refusal is not None

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        chosen = data.draw(
            st.lists(st.sampled_from(self.held), min_size=1, max_size=6, unique=True), "consumed"
        )
        self.tell(Consumption([self.spans.pop(payload) for payload in chosen]), chosen)

    def tell(self, consumption: Consumption, payloads: list[bytes]) -> None:
        before = self.journal._ledger._turn
        assert self.journal.consume(consumption) is None
        self.unsure += payloads
        if self.journal._ledger._turn != before:
            # The whole state was put on disk.
            self.unsure = []
        self.held = [payload for payload in self.held if payload not in payloads]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        """A consumer is done with the first messages of what it was given."""
        span = self.spans[data.draw(st.sampled_from(self.held), "one of it")]
        run = sorted(
            (other.start, other.end, payload)
            for payload, other in self.spans.items()
            if other.place == span.place
        )
        # From where on nothing before it was consumed alone.
        first = max(i for i, (start, _, _) in enumerate(run) if i == 0 or run[i - 1][1] != start)
        run = run[first:]
        position = span.place.position + run[0][0]
        done = self.partly.get(position, [])
        if len(done) + 1 < len(run):
            count = data.draw(st.integers(len(done) + 1, len(run) - 1), "messages")
            payloads = [payload for _, _, payload in run[len(done) : count]]
            self.partly[position] = done + payloads
            self.tell(Consumption(partly={position: count}), payloads)

    @rule()
    def process_dies(self) -> None:
        self.journal._close_files()
        self.recovers([], may_forget=False)

    @rule(data=st.data(), sizes=RUNS, stream=st.integers(0, 2))
    def host_dies(self, data: st.DataObject, sizes: list[list[int]], stream: int) -> None:
        """Anything may be missing, or wrong, of what was not on disk for certain."""
        made = self.make(sizes, stream)
        patch = pytest.MonkeyPatch()

        def crash(fd: int) -> None:
            raise Crash

        patch.setattr(os, "fdatasync", crash)
        try:
            self.journal.append([each for each, _ in made])
        except Crash:
            pass
        finally:
            patch.undo()
        if self.journal._log.files:
            file = self.journal._log.files[-1]
            size = os.fstat(file.fd).st_size
            cut = within(data, file.committed_size, size, "cut")
            os.ftruncate(file.fd, cut)
            if cut > file.committed_size and data.draw(st.booleans(), "torn"):
                at = within(data, file.committed_size, cut - 1, "at")
                os.pwrite(file.fd, b"\xff", at)
        book = self.journal._ledger
        lost = within(data, book._state_size, book._size, "ledger cut")
        os.pwrite(book._fd, bytes(book._size - lost), lost)
        self.journal._close_files()
        self.recovers(made, may_forget=True)

    def recovers(self, begun: list[tuple[Entry, list[bytes]]], *, may_forget: bool) -> None:
        self.journal = open_journal(self.path)
        found = waiting(self.journal)
        there = payloads_of(found)
        for made in begun:
            if not set(made[1]) <= set(there):
                break
            self.note(made)
        else:
            begun = []
        assert set(there) >= set(self.held)
        forgotten = set(there) - set(self.held)
        assert forgotten <= (set(self.unsure) if may_forget else set())
        assert there == sorted(there)
        self.held, self.unsure = there, []
        self.spans, self.partly = {}, {}
        for each in found:
            start = each.span.start
            for payload in payloads_of([each]):
                self.spans[payload] = Span(each.span.place, start, start + 8 + len(payload))
                start += 8 + len(payload)
        recovered = self.journal.recovered
        assert recovered.received == self.received
        tally = Tally()
        for payload in there:
            tally.add(payload)
        assert recovered.waiting == tally
        assert recovered.lost == Tally()
        accepted = {name: state.accepted for name, state in recovered.streams.items()}
        assert accepted == self.accepted

    def teardown(self) -> None:
        self.journal._close_files()
        self.folder.cleanup()


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


# The journal otherwise.


def test_folder_is_private_and_emptied_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = open_journal(folder)
    outcome = journal.append([entry([b"one", b"two"])])
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    (place,) = outcome.places
    journal.consume(Consumption([Span(place, 0, place.length)]))
    journal.close(is_complete=True)
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_second_buffer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "LOCK_PATIENCE_S", 0.05)
    first = open_journal(tmp_path)
    with pytest.raises(InvalidConfigError, match=rf"in use .*process {os.getpid()}"):
        open_journal(tmp_path)
    first.close(is_complete=False)
    open_journal(tmp_path).close(is_complete=False)


def test_what_is_consumed_is_deleted_file_by_file(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(40):
        (place,) = journal.append([entry([bytes(400)], 7, number)]).places
        journal.consume(Consumption([Span(place, 0, place.length)], finished=[(7, number == 39)]))
        assert len(list(tmp_path.glob("messages-*"))) <= 2
    journal.close(is_complete=False)
    again = open_journal(tmp_path)
    assert again.recovered.received.messages == 40
    assert again.recovered.waiting.messages == 0
    assert again.recovered.streams[7].accepted == 40
    assert again.recovered.streams[7].finished
    again.close(is_complete=True)


@pytest.mark.parametrize("part", ["head", "run"])
def test_damage_in_the_middle_is_named_counted_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    journal = open_journal(tmp_path)
    payloads = [f"message {number}".encode() * 10 for number in range(6)]
    places = [journal.append([entry([payload])]).places[0] for payload in payloads]
    path, offset = places[2].file.path, places[2].offset - HEAD_BYTES
    journal.close(is_complete=False)
    assert path is not None
    with path.open("r+b") as file:
        file.seek(offset + (20 if part == "head" else HEAD_BYTES + 20))
        file.write(b"\xff")
    with caplog.at_level(logging.ERROR):
        again = open_journal(tmp_path)
    (record,) = [each for each in caplog.records if each.message == "journal_damaged"]
    assert (record.file, record.offset) == (str(path), offset)  # type: ignore[attr-defined]
    assert payloads_of(waiting(again)) == payloads[:2] + payloads[3:]
    assert again.recovered.lost.messages == 1
    again.close(is_complete=False)
    # It is not found again and again.
    third = open_journal(tmp_path)
    assert third.recovered.lost.messages == 1
    assert third.recovered.waiting.messages == 5
    third.close(is_complete=False)


def test_missing_file_is_a_loss(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for _ in range(20):
        journal.append([entry([bytes(400)])])
    paths = sorted(tmp_path.glob("messages-*"))
    journal.close(is_complete=False)
    paths[1].unlink()
    again = open_journal(tmp_path)
    assert again.recovered.lost.messages == 1
    assert 10 < again.recovered.waiting.messages < 20
    again.close(is_complete=False)


def test_messages_without_a_ledger_are_refused(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.append([entry([b"one"])])
    journal.close(is_complete=False)
    for name in ledger_module.FILE_NAMES:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidConfigError, match=r"no ledger that can be read"):
        open_journal(tmp_path)


def test_consumption_is_written_down_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(tmp_path)
    places = journal.append([entry([bytes(100)]) for _ in range(10)]).places
    pwrite = os.pwrite
    full = True

    def refuse(fd: int, data: bytes, offset: int) -> int:
        if full:
            raise OSError(errno.EIO, "broken")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    assert journal.consume(Consumption([Span(places[0], 0, places[0].length)])) is not None
    assert journal.consume(Consumption([Span(places[1], 0, places[1].length)])) is not None
    full = False
    # What could not be written down then is now.
    assert journal.consume(Consumption([Span(places[2], 0, places[2].length)])) is None
    journal.close(is_complete=False)
    again = open_journal(tmp_path)
    assert again.recovered.waiting.messages == 7
    again.close(is_complete=False)


def test_ports_are_remembered(tmp_path: Path) -> None:
    config = BufferConfig(durable=tmp_path, inputs=(Address.parse("tcp://127.0.0.1:5000-5009"),))
    assert on_remembered_ports(config) == config
    remember_ports(tmp_path, {Side.IN: ["tcp://node:5003"], Side.OUT: ["tcp://node:43210"]})
    again = on_remembered_ports(config)
    assert [address.first_port for address in (*again.inputs, *again.outputs)] == [5003, 43210]
    assert [address.last_port for address in (*again.inputs, *again.outputs)] == [5003, 43210]
    # What is asked for now counts more.
    other = BufferConfig(durable=tmp_path, inputs=(Address.parse("tcp://127.0.0.1:6000"),))
    assert on_remembered_ports(other).inputs == other.inputs
    (tmp_path / "ports.json").write_text("{}")
    with pytest.raises(InvalidConfigError, match=r"ports\.json cannot be read"):
        on_remembered_ports(config)


# What both logs have in common.


def test_spill_takes_no_more_than_its_limit(tmp_path: Path) -> None:
    store: Store = Spill(tmp_path, file_bytes=FILE_BYTES, limit_bytes=8000)
    outcome = store.append([entry([bytes(1000)]) for _ in range(20)])
    assert 0 < len(outcome.places) < 8
    assert outcome.refusal is not None
    assert outcome.refusal.errno == errno.EDQUOT
    assert store.disk_bytes <= 8000
    assert list(tmp_path.iterdir()) == []
    store.consume(Consumption([Span(place, 0, place.length) for place in outcome.places]))
    assert store.disk_bytes == 0
    assert store.append([entry([bytes(1000)])]).refusal is None
    store.close(is_complete=True)


def test_spill_gives_space_back_early(tmp_path: Path) -> None:
    store = Spill(tmp_path)
    payload = bytes(1 << 20)
    places = store.append([entry([payload]) for _ in range(16)]).places
    file = places[0].file
    before = os.fstat(file.fd).st_blocks
    store.consume(Consumption([Span(place, 0, place.length) for place in places[:12]]))
    if file.punched:
        assert os.fstat(file.fd).st_blocks < before / 2
        assert store.disk_bytes < 8 << 20
    assert os.pread(file.fd, 8, places[12].offset) == header(len(payload))
    store.close(is_complete=True)
