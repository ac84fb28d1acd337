"""What the demo's workflow streams, and what it runs on it: the parameters of its DAG run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lclstream.core.errors import InvalidConfigError

if TYPE_CHECKING:
    from lclstream.streamer.sources.xtc2_dgram import ShapesData

PANELS = 2
ROWS, COLUMNS = 512, 1024
SIMULATED_EXPERIMENT = "mfxdemo26"
SIMULATED_RATE_HZ = 60.0
HDF5_SUFFIXES = (".h5", ".hdf5", ".cxi", ".nxs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the events of a run come from."""

    experiment: str
    run: int | None
    """None = the next number of the logbook."""
    streamer: dict[str, Any]
    """Configuration of the streamer, without handlers."""
    description: str


def simulated(events: int, rate_hz: float = SIMULATED_RATE_HZ, batch: int = 2) -> Source:
    """Return a simulated Jungfrau of 1 Mpixel, 2 MB an event, with missing readings."""
    return Source(
        experiment=SIMULATED_EXPERIMENT,
        run=None,
        streamer=_streamer(
            f"exp={SIMULATED_EXPERIMENT},run=1",
            {
                "type": "SimulatedDetectorEventSource",
                "events": events,
                "panels": PANELS,
                "shape": [ROWS, COLUMNS],
                "hit_rate": 0.4,
                "missing_frames": 0.02,
                "missing_scalars": 0.02,
                "rate_hz": rate_hz,
            },
            {
                "detector_data": _detector("jungfrau", "raw.raw"),
                "photon_wavelength": {
                    "type": "Psana2DetectorInterface",
                    "psana_name": "SIOC:SYS0:ML00:AO192",
                },
            },
            batch,
        ),
        description=f"simulated detector, {events} events",
    )


def from_file(path: Path) -> Source:
    """Return the source for a file of detector data.

    Raises:
        InvalidConfigError: no such file, not a known kind, or without detector frames.
    """
    if not path.is_file():
        raise InvalidConfigError(f"--source: no file {path}")
    path = path.resolve()
    if "," in str(path):
        raise InvalidConfigError(f"--source: a comma separates files, got {str(path)!r}")
    if path.suffix == ".xtc2":
        return _xtc2(path)
    if path.suffix in HDF5_SUFFIXES:
        return _hdf5(path)
    known = ", ".join((".xtc2", *HDF5_SUFFIXES))
    raise InvalidConfigError(f"--source: expected a file with suffix {known}, got {path.name!r}")


def parameters(source: Source, analysis: str, *, producers: int, consumers: int) -> dict[str, Any]:
    """Return the parameters of the workflow definition.

    Args:
        source: what to stream.
        analysis: script of a consumer.
        producers: ranks of the streamer.
        consumers: how many analysis jobs share the stream.
    """
    return {
        "streamer": source.streamer,
        "producers": producers,
        "producer_site": "s3df",
        "analysis": analysis,
        "analysis_site": "hpc",
        "consumers": consumers,
        "max_age_s": 600,
    }


def _streamer(
    identifier: str, events: dict[str, Any], data: dict[str, Any], batch: int
) -> dict[str, Any]:
    names = {name: f"/data/{name}" for name in data}
    return {
        "source_identifier": identifier,
        "skip_incomplete_events": False,
        "event_source": events,
        "data_sources": {"timestamp": {"type": "Psana2Timestamp"}, **data},
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": batch},
        "data_serializer": {
            "type": "HDF5BinarySerializer",
            "compression": None,
            "fields": {"timestamp": "/data/timestamp", **names},
        },
        "data_handlers": [],
    }


def _detector(name: str, field: str) -> dict[str, Any]:
    return {"type": "Psana2DetectorInterface", "psana_name": name, "psana_fields": field}


def _xtc2(path: Path) -> Source:
    from lclstream.streamer.sources.xtc2_file import Xtc2File
    from lclstream.streamer.sources.xtc2_format import Service

    experiment, run = "unknown", None
    for dgram in Xtc2File(path):
        if dgram.service is Service.BEGIN_RUN:
            for each in dgram.contributions():
                if each.names.detector == "runinfo":
                    experiment, run = str(each.value("expt")), int(each.value("runnum"))
        if dgram.service is Service.L1ACCEPT:
            detector, field = _largest_array(dgram.contributions(), path)
            break
    else:
        raise InvalidConfigError(f"--source: no events in {path}")
    return Source(
        experiment=experiment,
        run=run,
        streamer=_streamer(
            f"files={path}",
            {"type": "Xtc2EventSource"},
            {"detector_data": _detector(detector, field)},
            batch=1,
        ),
        description=f"{path.name}, detector {detector}, {field}",
    )


def _largest_array(contributions: "Iterable[ShapesData]", path: Path) -> tuple[str, str]:
    """Return detector and field of the reading that takes most room."""
    found = [
        (int(value.nbytes), each.names.detector, f"{each.names.algorithm}.{field.name}")
        for each in contributions
        for field in each.names.fields
        if field.rank >= 2 and hasattr(value := each.value(field.name), "nbytes")
    ]
    if not found:
        raise InvalidConfigError(f"--source: no detector with frames in {path}")
    _, detector, name = max(found)
    return detector, name


def _hdf5(path: Path) -> Source:
    import h5py

    with h5py.File(path) as file:
        frames = sorted(_frame_datasets(file), key=lambda found: (-found[1], found[0]))
    if not frames:
        raise InvalidConfigError(
            f"--source: no dataset of frames (events, rows, columns) in {path}"
        )
    name = frames[0][0]
    return Source(
        experiment=path.stem.split("_")[0],
        run=None,
        streamer=_streamer(
            f"files={path}",
            {"type": "Hdf5EventSource", "experiment": path.stem.split("_")[0]},
            {"detector_data": {"type": "EventValue", "name": name}},
            batch=1,
        ),
        description=f"{path.name}, dataset {name}",
    )


def _frame_datasets(file: Any) -> Iterator[tuple[str, int]]:
    """Yield path and bytes of every dataset that can be a stack of frames."""
    import h5py

    found: list[tuple[str, int]] = []

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 3 and item.dtype.kind in "iuf":
            found.append((f"/{name}", int(item.nbytes)))

    file.visititems(look)
    yield from found
