"""Folders as event source: whole files only, in order, the same for every rank."""

import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.streamer.conftest import wait_until
from tests.streamer.serializing import STAMP, Given, events, parameters_of, whole_stream

from lclstream.core.errors import DecodeError, InvalidConfigError, StreamError
from lclstream.streamer.config import parse_parameters
from lclstream.streamer.events import Event, open_event_source
from lclstream.streamer.sources.folder import FolderEventSource
from lclstream.streamer.sources.inspection import describe
from lclstream.streamer.stopping import StopRequest
from lclstream.streamer.values import Ragged

FRAME = "/frame"


def frames(number: int, count: int = 2) -> np.ndarray[Any, Any]:
    return (np.arange(count * 6, dtype="u2") + 100 * number).reshape(count, 2, 3)


def write_hdf5(path: Path, number: int, count: int = 2) -> None:
    with h5py.File(path, "w") as file:
        file["frame"] = frames(number, count)


def opened(
    document: dict[str, Any], folder: object, rank: int = 0, size: int = 1,
    wanted: tuple[str, ...] = (FRAME,), **config: Any,
) -> FolderEventSource:  # fmt: skip
    document["source_identifier"] = str(folder)
    document["event_source"] = {"type": "FolderEventSource", "poll_s": 0.02, **config}
    document["data_sources"] = {
        f"v{number}": {"type": "EventValue", "name": name} for number, name in enumerate(wanted)
    }
    source = open_event_source(parse_parameters(document), rank, size)
    assert isinstance(source, FolderEventSource)
    return source


def all_of(source: FolderEventSource, *wanted: str) -> list[tuple[Event, list[Any]]]:
    try:
        return [(event, [event.read(each) for each in wanted]) for event in source]
    finally:
        source.close()


def present(document: dict[str, Any], folder: object, *wanted: str, **config: Any) -> list[Any]:
    """Return the events of what is there."""
    settings = {"follow": False, "stable_s": 0, **config}
    return all_of(opened(document, folder, wanted=wanted, **settings), *wanted)


class Taking:
    """Takes the events of a source in a thread, one after the other."""

    def __init__(self, source: FolderEventSource, *wanted: str) -> None:
        self.events: list[tuple[int, list[Any]]] = []
        self.error: Exception | None = None
        self._source, self._wanted = source, wanted
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for event in self._source:
                values = [event.read(each) for each in self._wanted]
                self.events.append((event.index, values))
        except Exception as error:
            self.error = error

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def ended(self) -> list[tuple[int, list[Any]]]:
        wait_until(lambda: self.has_ended)
        self._thread.join()
        self._source.close()
        if self.error is not None:
            raise self.error
        return self.events


@pytest.fixture
def taking(document: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., Taking]]:
    """Return a function that begins to take what appears in `tmp_path`; all are ended."""
    begun: list[tuple[Taking, StopRequest]] = []

    def begin(rank: int = 0, size: int = 1, **config: Any) -> Taking:
        source = opened(document, tmp_path, rank, size, **config)
        stop = StopRequest().__enter__()
        source.interrupt_by(stop)
        begun.append((Taking(source, FRAME), stop))
        return begun[-1][0]

    yield begin
    for each, stop in begun:
        stop.request("the test is over")
        wait_until(lambda each=each: each.has_ended)  # type: ignore[misc]
        each._source.close()
        stop.__exit__(None, None, None)


def test_files_that_are_there_come_in_the_order_of_their_numbers(
    document: dict[str, Any], tmp_path: Path
) -> None:
    for number in (10, 9, 1):
        write_hdf5(tmp_path / f"run{number}.h5", number)
    for name in (".hidden.h5", "half.h5.part", "half.h5.tmp", "notes.txt"):
        (tmp_path / name).write_text("not to be read")
    (tmp_path / "folder.h5").mkdir()
    found = present(document, tmp_path, FRAME)
    assert [event.index for event, _ in found] == list(range(6))
    expected = np.concatenate([frames(number) for number in (1, 9, 10)])
    assert np.array_equal([values[0] for _, values in found], expected)


def test_files_may_be_ordered_by_time(document: dict[str, Any], tmp_path: Path) -> None:
    for number, age_s in ((1, 100), (2, 300), (3, 200)):
        write_hdf5(tmp_path / f"{number}.h5", number, 1)
        changed = time.time() - age_s
        os.utime(tmp_path / f"{number}.h5", (changed, changed))
    found = present(document, tmp_path, FRAME, order="time")
    assert [int(values[0][0, 0]) for _, values in found] == [200, 300, 100]


def test_ranks_share_the_events(document: dict[str, Any], tmp_path: Path) -> None:
    for number in range(3):
        write_hdf5(tmp_path / f"{number}.h5", number, 3)
    found = {
        event.index: values[0]
        for rank in range(4)
        for event, values in all_of(
            opened(document, tmp_path, rank, 4, follow=False, stable_s=0), FRAME
        )
    }
    assert sorted(found) == list(range(9))
    assert np.array_equal(found[7], frames(2, 3)[1])


@pytest.mark.parametrize("watch", ["auto", "poll"])
def test_files_are_read_as_they_appear_until_the_last_is_announced(
    tmp_path: Path, taking: Callable[..., Taking], watch: str
) -> None:
    write_hdf5(tmp_path / "0.h5", 0)
    begun = taking(watch=watch, end_file="DONE", stable_s=0.05)
    wait_until(lambda: len(begun.events) == 2)
    # By another name first, as careful writers do it.
    write_hdf5(tmp_path / "1.h5.tmp", 1)
    (tmp_path / "1.h5.tmp").rename(tmp_path / "1.h5")
    wait_until(lambda: len(begun.events) == 4)
    write_hdf5(tmp_path / "2.h5", 2)
    (tmp_path / "DONE").touch()
    found = begun.ended()
    assert [index for index, _ in found] == list(range(6))
    assert np.array_equal([values[0] for _, values in found], frames(0, 2).tolist()
                          + frames(1, 2).tolist() + frames(2, 2).tolist())  # fmt: skip


def test_a_file_that_grows_is_not_touched_and_holds_up_those_behind_it(
    tmp_path: Path, taking: Callable[..., Taking]
) -> None:
    whole = tmp_path / "elsewhere"
    whole.mkdir()
    write_hdf5(whole / "0.h5", 0)
    content = (whole / "0.h5").read_bytes()
    # The system would say at once that it was closed; so that alone does not count here.
    begun = taking(watch="poll", stable_s=0.5, end_file="DONE")
    write_hdf5(tmp_path / "1.h5", 1)
    looked = begun._source._watch
    with (tmp_path / "0.h5").open("wb") as file:
        for at in range(0, len(content), len(content) // 4 + 1):
            file.write(content[at : at + len(content) // 4 + 1])
            file.flush()
            size = file.tell()
            wait_until(lambda size=size: looked._seen.get(tmp_path / "0.h5") is not None  # type: ignore[misc]
                       and looked._seen[tmp_path / "0.h5"].size == size)  # fmt: skip
            assert not begun.events
    (tmp_path / "DONE").touch()
    assert [values[0].tolist() for _, values in begun.ended()] == [
        *frames(0).tolist(), *frames(1).tolist(),
    ]  # fmt: skip


def test_a_file_beside_it_may_say_that_a_file_is_whole(
    tmp_path: Path, taking: Callable[..., Taking]
) -> None:
    begun = taking(done_suffix=".ok", end_file="DONE")
    write_hdf5(tmp_path / "0.h5", 0)
    (tmp_path / "1.h5.ok").touch()
    write_hdf5(tmp_path / "1.h5", 1)
    wait_until(lambda: tmp_path / "1.h5" in begun._source._watch._seen)
    assert not begun.events
    (tmp_path / "0.h5.ok").touch()
    wait_until(lambda: len(begun.events) == 4)
    (tmp_path / "DONE").touch()
    assert [index for index, _ in begun.ended()] == [0, 1, 2, 3]


def test_silence_ends_the_source(document: dict[str, Any], tmp_path: Path) -> None:
    write_hdf5(tmp_path / "0.h5", 0)
    found = all_of(opened(document, tmp_path, stable_s=0, idle_timeout_s=0.2), FRAME)
    assert len(found) == 2


def test_the_wish_to_end_cuts_the_wait_short(document: dict[str, Any], tmp_path: Path) -> None:
    source = opened(document, tmp_path)
    with StopRequest() as stop:
        source.interrupt_by(stop)
        stop.request("enough")
        assert all_of(source) == []


def test_ranks_do_not_disagree_without_a_word(
    tmp_path: Path, taking: Callable[..., Taking]
) -> None:
    write_hdf5(tmp_path / "5.h5", 5)
    alone, shared = taking(0, 1, stable_s=0), taking(0, 2, stable_s=0)
    wait_until(lambda: len(alone.events) == 2 and len(shared.events) == 1)
    write_hdf5(tmp_path / "4.tmp", 4)
    (tmp_path / "4.tmp").rename(tmp_path / "4.h5")
    wait_until(lambda: len(alone.events) == 4)
    with pytest.raises(StreamError, match=r"4\.h5 appeared after .*5\.h5, which is behind it"):
        shared.ended()


def test_several_folders_are_read_together(document: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write_hdf5(tmp_path / "b" / "1.h5", 1, 1)
    write_hdf5(tmp_path / "a" / "2.h5", 2, 1)
    found = present(document, f"{tmp_path}/a,{tmp_path}/b", FRAME)
    assert [int(values[0][0, 0]) for _, values in found] == [100, 200]


def test_what_later_files_lack_is_missing(document: dict[str, Any], tmp_path: Path) -> None:
    write_hdf5(tmp_path / "0.h5", 0)
    write_hdf5(tmp_path / "1.h5", 1)
    with h5py.File(tmp_path / "0.h5", "r+") as file:
        file["energy"] = [1.5, 2.5]
    found = present(document, tmp_path, FRAME, "/energy")
    assert [values[1] for _, values in found] == [1.5, 2.5, None, None]
    # The first file must have all, whoever reads its events.
    with pytest.raises(InvalidConfigError, match=r"0\.h5: .*no detector or variable '/energi'"):
        present(document, tmp_path, FRAME, "/energi")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_file_that_cannot_be_read_is_named_or_skipped(
    document: dict[str, Any], tmp_path: Path, on_error: str
) -> None:
    write_hdf5(tmp_path / "0.h5", 0)
    (tmp_path / "1.h5").write_text("no HDF5")
    (tmp_path / "2.npz").write_text("no archive")
    write_hdf5(tmp_path / "3.h5", 3)
    source = opened(document, tmp_path, follow=False, stable_s=0, on_error=on_error)
    if on_error == "stop":
        with pytest.raises(InvalidConfigError, match=r"/1\.h5: not a readable HDF5 file"):
            all_of(source)
        return
    assert [event.index for event, _ in all_of(source)] == [0, 1, 2, 3]
    assert source.counts == {"files": 2, "events": 4, "skipped_files": 2}


def test_arrays_are_read_from_npz_and_npy(document: dict[str, Any], tmp_path: Path) -> None:
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", frame=frames(number), mask=np.eye(2))
    found = present(document, tmp_path, "frame", "mask", constants=["mask"])
    assert np.array_equal([values[0] for _, values in found], [*frames(0), *frames(1)])
    assert all(np.array_equal(values[1], np.eye(2)) for _, values in found)
    folder = tmp_path / "npy"
    folder.mkdir()
    for number in range(2):
        np.save(folder / f"{number}.npy", frames(number))
    found = present(document, folder, "data")
    assert np.array_equal([values[0] for _, values in found], [*frames(0), *frames(1)])
    assert not any(isinstance(values[0], np.memmap) for _, values in found)
    found = present(document, folder, "data", one_event=True)
    assert [values[0].shape for _, values in found] == [(2, 2, 3)] * 2
    found = present(document, folder, "jungfrau.raw.raw", names={"jungfrau.raw.raw": "data"})
    assert len(found) == 4


def test_what_our_own_streamer_writes_is_read_again(
    document: dict[str, Any], tmp_path: Path
) -> None:
    given: list[Given] = [
        {
            "frame": None if number == 2 else frames(number)[0],
            "peaks": Ragged(np.arange(2 * number, dtype="f4").reshape(number, 2)),
        }
        for number in range(5)
    ]
    serializers: list[tuple[str, dict[str, Any]]] = [
        ("npz", {"type": "NumpyBinarySerializer"}),
        ("h5", {"type": "HDF5BinarySerializer"}),
        ("h5", {"type": "HDF5BinarySerializer", "compression": "bitshuffle_with_lz4"}),
    ]
    for attempt, (suffix, serializer) in enumerate(serializers):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        parameters = parameters_of(given[0], 2, **serializer)
        for number, message in enumerate(whole_stream(parameters, events(given))):
            (folder / f"r0_{number}.{suffix}").write_bytes(message)
        found = present(document, folder, "frame", "peaks")
        for number, (event, (frame, peaks)) in enumerate(found):
            assert (event.timestamp, event.step) == (STAMP + number, number // 2)
            assert (event.run, event.experiment) == (3, "tst000124")
            assert frame is None if number == 2 else np.array_equal(frame, frames(number)[0])
            assert isinstance(peaks, Ragged)
            assert np.array_equal(peaks.array, np.arange(2 * number).reshape(number, 2))
        assert len(found) == 5


def saved(**arrays: Any) -> Callable[[Path], None]:
    """Return what writes an archive; `__` in a name stands for `/`."""
    return lambda path: np.savez(
        path, allow_pickle=True, **{name.replace("__", "/"): each for name, each in arrays.items()}
    )


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
        head += b" " * (117 - len(head)) + b"\n"
        magic = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little")
        archive.writestr("frame.npy", magic + head)


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (saved(frame=np.zeros(3), lclstream=0), "nothing"),
        (saved(other=np.zeros(3)), "no detector or variable 'frame'"),
        (saved(frame=np.float64(1)), "frame has no axis of events"),
        (saved(frame=np.array([{}], object)), "Object arrays cannot be"),
        (saved(frame=np.zeros(2, "f8,i4")), "which cannot be sent"),
        (saved(frame=np.zeros(2), lclstream__timestamp=[1]),
         "the arrays differ in their events: frame has 2, lclstream/timestamp has 1"),
        (saved(frame=np.zeros(2), lclstream__offsets__frame=[0, 9]), "event 0 has 0 to 9"),
        (saved(frame=np.zeros(2), lclstream__timestamp=[0.5, 1]),
         "lclstream/timestamp must be integers, got float64"),
        (bomb, "cannot read .*: frame: 8000000000000 bytes in an array"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(40)), "cannot read .*1.npz: "),
    ],
)  # fmt: skip
def test_damaged_archives_are_named(
    document: dict[str, Any], tmp_path: Path, write: Callable[[Path], None], text: str
) -> None:
    write(tmp_path / "1.npz")
    if text == "nothing":
        assert len(present(document, tmp_path, "frame")) == 3
        return
    with pytest.raises((DecodeError, InvalidConfigError), match=text) as caught:
        present(document, tmp_path, "frame")
    assert "1.npz" in str(caught.value)


def test_mistakes_are_named(document: dict[str, Any], tmp_path: Path) -> None:
    cases: list[tuple[object, dict[str, Any], str]] = [
        ("", {}, "source_identifier must name the folders"),
        (tmp_path / "none", {}, r"no such folder: .*/none$"),
        (tmp_path, {"end_file": "x", "follow": False}, "end_file has no meaning without follow"),
    ]
    for identifier, config, text in cases:
        with pytest.raises(InvalidConfigError, match=text):
            opened(document, identifier, **config)
    folder = tmp_path / "soon_gone"
    folder.mkdir()
    source = opened(document, folder)
    folder.rmdir()
    with pytest.raises(StreamError, match="soon_gone: No such file or directory"):
        all_of(source)


def test_inspect_lists_what_is_in_a_folder(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "0.h5", 0)
    np.savez(tmp_path / "1.npz", frame=frames(1))
    (tmp_path / "2.h5").write_text("no HDF5")
    lines = list(describe(str(tmp_path)))
    assert lines[:4] == [
        f"{tmp_path}/0.h5", "  /frame: uint16, 2 x 2 x 3", f"{tmp_path}/1.npz",
        "  frame: uint16, 2 x 2 x 3",
    ]  # fmt: skip
    assert "not a readable HDF5 file" in lines[5]
    np.save(tmp_path / "one.npy", frames(1))
    assert list(describe(str(tmp_path / "one.npy")))[1] == "  data: uint16, 2 x 2 x 3"


def test_an_empty_file_is_waited_for_but_not_for_ever(
    document: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "0.h5").touch()
    source = opened(document, tmp_path, stable_s=0, idle_timeout_s=0.1, on_error="skip")
    assert all_of(source) == []
    assert source.counts["skipped_files"] == 0
    long_ago = time.time() - 1000
    os.utime(tmp_path / "0.h5", (long_ago, long_ago))
    source = opened(document, tmp_path, stable_s=0, idle_timeout_s=0.1, on_error="skip")
    assert all_of(source) == []
    assert source.counts["skipped_files"] == 1


def test_a_mistake_in_the_configuration_is_no_reason_to_skip(
    document: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "0.h5").write_text("no HDF5")
    write_hdf5(tmp_path / "1.h5", 1)
    np.savez(tmp_path / "2.npz", other=np.zeros(2))
    with pytest.raises(InvalidConfigError, match=r"/1\.h5: .*no detector or variable '/fram'"):
        present(document, tmp_path, "/fram", on_error="skip")
    (tmp_path / "1.h5").unlink()
    with pytest.raises(InvalidConfigError, match=r"/2\.npz: .*no detector or variable '/fram'"):
        present(document, tmp_path, "/fram", on_error="skip")
