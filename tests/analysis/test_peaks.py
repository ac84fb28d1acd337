"""The peak finding job, from a real stream to files, as command and with several consumers."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from matplotlib.image import imread
from tests.analysis.simulated import SimulatedRun
from tests.client.messages import Producer, message

from lclstream.analysis.peaks import Outcome, PeakJob
from lclstream.analysis.results import merge_results, read_result, times_of
from lclstream.analysis.settings import PeakSettings
from lclstream.cli.main import main
from lclstream.client.streams import stream
from lclstream.core.errors import BufferClosedError, DecodeError, InvalidConfigError, NotFoundError
from lclstream.core.ledger import digest64

LCLSTREAM = [sys.executable, "-c", "import sys, lclstream.cli.main as m; sys.exit(m.main())"]

Make = Callable[..., SimulatedRun]

# Each process with a fresh HOME looks at all fonts once.
pytestmark = pytest.mark.timeout(180)


def find_peaks(payloads: list[bytes], output: Path, **options: Any) -> Outcome:
    with Producer(payloads) as producer:
        batches = stream(producer.url, on_error="skip", label=options.pop("label", "consumer"))
        return PeakJob(batches, output, PeakSettings(min_peaks=8), **options).run()


@contextmanager
def running(*arguments: str) -> Iterator["Job"]:
    command = [*LCLSTREAM, "analyse", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        try:
            yield job
        finally:
            job.kill()


Job = subprocess.Popen[bytes]


def is_png(path: Path) -> bool:
    return bool(imread(path).std() > 0)


def frames_message(shape: tuple[int, ...], valid: list[int], masked: list[int]) -> bytes:
    """Return a message of noise, with a mask dataset and what is valid of both."""
    memory = io.BytesIO()
    count = len(valid)
    with h5py.File(memory, "w") as file:
        file["data/data"] = np.random.default_rng(1).normal(0, 1, (count, *shape)).astype("f4")
        file["data/mask"] = np.ones((count, *shape), np.uint8)
        for source, path, each in (
            ("frame", "/data/data", valid),
            ("bad", "/data/mask", masked),
        ):
            file[f"lclstream/valid/{source}"] = np.array(each, np.uint8)
            file[f"lclstream/valid/{source}"].attrs["dataset"] = path
    return memory.getvalue()


def test_frames_marked_as_missing_are_not_analysed(tmp_path: Path) -> None:
    payload = frames_message((2, 16, 16), [1, 0, 1, 1], [1, 1, 0, 1])
    result = read_result(find_peaks([payload], tmp_path).result)
    assert list(result.events["valid"]) == [1, 0, 0, 1]
    assert result.image.count is not None
    assert (result.image.count == 2).all()


def test_frames_that_change_their_shape_end_the_job_with_what_came_before(tmp_path: Path) -> None:
    payloads = [frames_message((2, 16, rows), [1], [1]) for rows in (16, 32)]
    with pytest.raises(DecodeError, match=r"^the frames change their shape from \(2, 16, 16\) to"):
        find_peaks(payloads, tmp_path)
    (path,) = tmp_path.glob("*.h5")
    result = read_result(path)
    assert len(result.events["index"]) == 1
    assert not result.attributes["complete"]


@pytest.mark.parametrize("compression", [None, "bitshuffle_with_lz4"])
def test_result_says_what_was_found(
    simulated: Make, tmp_path: Path, compression: str | None
) -> None:
    run = simulated(compression=compression, missing_frames=0.1)
    outcome = find_peaks(run.messages, tmp_path / "out")
    result = read_result(outcome.result)
    frames = [event.read("jungfrau", "raw.calib") for event in run.events]
    there = np.array([frame is not None for frame in frames])
    hits = np.array(run.hits) & there
    assert list(result.events["index"]) == list(range(40))
    assert list(result.events["timestamp"]) == [event.timestamp for event in run.events]
    assert (result.events["valid"] == there).all()
    assert (result.events["hit"] == hits).all()
    assert 0 < there.sum() < 40
    assert 0 < hits.sum() < there.sum()
    per_event = np.bincount(result.peaks["event"].astype(int), minlength=40)
    assert (per_event == result.events["n_peaks"]).all()
    mask = np.asarray(run.events[0].read("jungfrau", "raw.mask")) != 0
    total = np.sum([np.asarray(frame, float) for frame in frames if frame is not None], axis=0)
    assert result.image.total is not None
    assert np.allclose(result.image.total[mask], total[mask])
    assert (result.image.total[~mask] == 0).all()
    assert result.image.count is not None
    assert (result.image.count == mask * there.sum()).all()
    summary = outcome.summary
    assert summary["events"] == 40
    assert summary["missing_frames"] == 40 - there.sum()
    assert summary["hits"] == hits.sum()
    assert summary["complete"] is True
    assert (summary["experiment"], summary["run"]) == ("mfx1", 7)
    assert summary["digest"] == run.tally.snapshot().digest
    assert result.attributes["frames"] == "data/data"
    assert result.attributes["mask"] == "data/mask"
    assert json.loads(result.attributes["settings"])["min_peaks"] == 8
    assert is_png(outcome.picture)
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".h5", ".png"]


def test_two_consumers_share_a_stream_and_their_results_merge(
    simulated: Make, tmp_path: Path
) -> None:
    run = simulated(events=40)
    output = tmp_path / "out"
    with ExitStack() as resources:
        jobs = []
        for share in (run.messages[::2], run.messages[1::2]):
            producer = resources.enter_context(Producer(share))
            options = ["--url", producer.url, "--output", str(output)]
            jobs.append(resources.enter_context(running("peaks", *options)))
        answers = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], answers
    summaries = []
    for out, _ in answers:
        result, picture, line = out.decode().splitlines()
        assert Path(result).is_file()
        assert is_png(Path(picture))
        summaries.append(json.loads(line))
    assert sum(summary["events"] for summary in summaries) == 40
    digest = sum(int(summary["digest"], 16) for summary in summaries) % (1 << 64)
    assert digest == sum(digest64(payload) for payload in run.messages) % (1 << 64)
    merged = merge_results(output)
    assert merged.summary["consumers"] == 2
    assert merged.summary["digest"] == run.tally.snapshot().digest
    assert (merged.summary["duplicate_events"], merged.summary["gaps_in_index"]) == (0, 0)
    result_of_all = read_result(merged.result)
    alone = read_result(find_peaks(run.messages, tmp_path / "alone").result)
    assert list(result_of_all.events["index"]) == list(range(40))
    for name in ("index", "timestamp", "n_peaks", "valid"):
        assert (result_of_all.events[name] == alone.events[name]).all()
    for name, column in result_of_all.peaks.items():
        assert (column == alone.peaks[name]).all()
    assert result_of_all.image.total is not None
    assert alone.image.total is not None
    assert np.allclose(result_of_all.image.total, alone.image.total)


def test_merge_as_a_command_counts_events_once(
    simulated: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = simulated()
    output = tmp_path / "out"
    find_peaks(run.messages[:6], output, label="one")
    find_peaks(run.messages[4:8], output, label="two")
    assert main(["analyse", "merge", str(output)]) == 0
    result, picture, line = capsys.readouterr().out.splitlines()
    summary = json.loads(line)
    assert (summary["events"], summary["duplicate_events"], summary["gaps_in_index"]) == (32, 8, 0)
    events = read_result(Path(result)).events
    peaks = read_result(Path(result)).peaks
    assert list(events["index"]) == list(range(32))
    assert (np.bincount(peaks["event"].astype(int), minlength=32) == events["n_peaks"]).all()
    assert is_png(Path(picture))
    # A second merge does not take the first one for a result.
    assert main(["analyse", "merge", str(output)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["consumers"] == 2


def test_messages_of_a_streamer_without_identification(tmp_path: Path) -> None:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["data/data"] = np.random.default_rng(0).poisson(5, (3, 2, 64, 64)).astype(np.float64)
    outcome = find_peaks([memory.getvalue()] * 2, tmp_path)
    result = read_result(outcome.result)
    assert len(result.events["index"]) == 6
    assert times_of(result.events)[1] == "event in order of arrival"
    assert is_png(outcome.picture)
    assert merge_results(tmp_path).summary["events"] == 6


def test_integer_frames_that_are_missing(simulated: Make, tmp_path: Path) -> None:
    run = simulated(field="raw.raw", missing_frames=0.3)
    outcome = find_peaks(run.messages, tmp_path / "out")
    there = [event.read("jungfrau", "raw.raw") is not None for event in run.events]
    assert list(read_result(outcome.result).events["valid"]) == there


def test_stream_without_messages(tmp_path: Path) -> None:
    outcome = find_peaks([b""], tmp_path)
    assert outcome.summary["events"] == 0
    assert is_png(outcome.picture)
    assert merge_results(tmp_path).summary["complete"] is True


def test_damaged_message_makes_the_result_incomplete(simulated: Make, tmp_path: Path) -> None:
    run = simulated()
    payloads = [run.messages[0], run.messages[1][:900], run.messages[2]]
    with Producer(payloads) as producer:
        code = main(["analyse", "peaks", "--url", producer.url, "--output", str(tmp_path / "out")])
    assert code == 1
    (path,) = (tmp_path / "out").glob("*.h5")
    attributes = read_result(path).attributes
    assert not attributes["complete"]
    assert (attributes["damaged_messages"], attributes["events"]) == (1, 8)


def test_broken_stream_leaves_what_came_before(simulated: Make, tmp_path: Path) -> None:
    run = simulated()
    with Producer(run.messages[:2], end=False) as producer:
        batches = stream(producer.url, timeout_s=1.0)
        job = PeakJob(batches, tmp_path / "out", PeakSettings())
        batches.stop("enough")
        with pytest.raises(BufferClosedError, match="enough"):
            job.run()
    assert job.outcome is not None
    assert job.outcome.summary["problem"].endswith("enough")
    assert not read_result(job.outcome.result).attributes["complete"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_job_with_a_result(
    simulated: Make, tmp_path: Path, number: signal.Signals
) -> None:
    run = simulated()
    output = tmp_path / "out"
    with (
        Producer(run.messages[:3], end=False) as producer,
        running("peaks", "--url", producer.url, "--output", str(output)) as job,
    ):
        assert job.stderr is not None
        # The job logs its choice with the first message.
        while b"datasets_chosen" not in job.stderr.readline():
            assert job.poll() is None
        job.send_signal(number)
        out, _ = job.communicate(timeout=120)
    assert job.returncode == 128 + number
    assert json.loads(out.decode().splitlines()[-1])["complete"] is False
    assert len(list(output.glob("*.h5"))) == len(list(output.glob("*.png"))) == 1


def image_message(*names: str) -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for name in names:
            file[name] = np.random.default_rng(0).normal(0, 1, (1, 16, 16))
    return memory.getvalue()


def test_ambiguous_frames_are_named(tmp_path: Path) -> None:
    expected = r"^several datasets may hold the frames, name one: a float64 \(1, 16, 16\), b "
    with pytest.raises(InvalidConfigError, match=expected):
        find_peaks([image_message("a", "b")], tmp_path)
    assert list(tmp_path.iterdir()) == []
    outcome = find_peaks([image_message("a", "b")], tmp_path, frames="b")
    assert read_result(outcome.result).attributes["frames"] == "b"


@pytest.mark.parametrize("count", [1, 60])
def test_frames_that_never_come(tmp_path: Path, count: int) -> None:
    with pytest.raises(InvalidConfigError, match=r"^no dataset of the stream is named 'c': a "):
        find_peaks([image_message("a")] * count, tmp_path, frames="c")
    # Arrays of 4 x 8 are no images.
    with pytest.raises(InvalidConfigError, match=r"^no dataset of the stream is an image: "):
        find_peaks([message()] * count, tmp_path)


def test_frames_may_come_late_and_stay_away(tmp_path: Path) -> None:
    payloads = [message(count=1), image_message("calib", "a"), image_message("a")]
    outcome = find_peaks(payloads, tmp_path)
    assert list(read_result(outcome.result).events["valid"]) == [0, 1, 0]


def test_mask_of_another_shape(tmp_path: Path) -> None:
    memory = io.BytesIO(image_message("calib"))
    with h5py.File(memory, "a") as file:
        file["good"] = np.ones((1, 8, 8))
    with pytest.raises(InvalidConfigError, match=r"^the mask good must have shape \(1, 16, 16\)"):
        find_peaks([memory.getvalue()], tmp_path, mask="good")


def test_merge_of_nothing_and_of_damage(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^no result peaks-\*\.h5 in"):
        merge_results(tmp_path)
    (tmp_path / "peaks-x.h5").write_bytes(b"nonsense")
    with pytest.raises(DecodeError, match=r"^no result of a peak finder in .*peaks-x\.h5"):
        merge_results(tmp_path)
