"""What the data acquisition itself records beside the detectors: runs, chunks, variables, scans."""

from collections.abc import Mapping

from lclstream.streamer.sources.xtc2_format import Field, FieldType, Key, Names


def _text(name: str) -> Field:
    return Field(name=name, type=FieldType.CHARSTR, rank=1)


RUNINFO = Names(
    detector="runinfo",
    detector_type="runinfo",
    algorithm="runinfo",
    version=(0, 0, 1),
    fields=(_text("expt"), Field(name="runnum", type=FieldType.U4)),
)
CHUNKINFO = Names(
    detector="chunkinfo",
    detector_type="chunkinfo",
    algorithm="chunkinfo",
    version=(0, 0, 1),
    fields=(Field(name="chunkid", type=FieldType.U4), _text("filename")),
)
EPICS_KEY: Key = ("epics", 0, "raw")
SCAN_KEY: Key = ("scan", 0, "raw")
EPICSINFO_KEY: Key = ("epicsinfo", 0, "epicsinfo")


def epics_names(epics: Mapping[str, tuple[str, FieldType]]) -> list[Names]:
    """Return the Names of process variables, by key, and of their names; none without any."""
    if not epics:
        return []
    values = _variables({key: kind for key, (_, kind) in epics.items()})
    return [
        Names(
            detector="epics",
            detector_type="epics",
            algorithm="raw",
            version=(2, 0, 0),
            fields=values,
        ),
        Names(
            detector="epicsinfo",
            detector_type="epicsinfo",
            algorithm="epicsinfo",
            version=(1, 0, 0),
            fields=(_text("keys"), *(_text(key) for key in epics)),
        ),
    ]


def scan_names(scan: Mapping[str, FieldType]) -> list[Names]:
    """Return the Names of the variables of a scan; none without any."""
    if not scan:
        return []
    return [
        Names(
            detector="scan",
            detector_type="scan",
            algorithm="raw",
            version=(2, 0, 0),
            fields=_variables(scan),
        )
    ]


def _variables(kinds: Mapping[str, FieldType]) -> tuple[Field, ...]:
    return tuple(
        Field(name=key, type=kind, rank=int(kind is FieldType.CHARSTR))
        for key, kind in kinds.items()
    )
