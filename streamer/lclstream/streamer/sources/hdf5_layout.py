"""What HDF5 files of known layouts call their data: NeXus, CXI, LCLS's `/entry`, and ours.

| name | of |
|---|---|
| `signal` | the data that the file is about: the default signal of NeXus, `data` of CXI |
| `<group>.<dataset>` | a dataset of a group of a NeXus class, such as `beam.wavelength` |
| `<detector>.raw.raw`, `<detector>.raw.calib` | the images of a detector |
| a label, or a path | in files of our own, what was sent under it |

Groups without a class have that which their name implies, as in CXI files (`data_1`,
`instrument_1`). Where two groups have one name, the first one in the file keeps it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import h5py

from lclstream.streamer.sources.hdf5_column import reading

OWN_GROUP = "lclstream"
LCLS_SECONDS, LCLS_NANOSECONDS = "/LCLS/machineTime", "/LCLS/machineTimeNanoSeconds"
SIGNAL = "signal"
IMAGE_FIELDS = ("raw.raw", "raw.calib")
# Groups below which no data lie would make us search for ever in a damaged file.
MAX_DEPTH = 6
MAX_OBJECTS = 20_000

_IMPLIED = re.compile(r"(entry|data|image|instrument|detector|source|sample|beam)(_?\d+)?")
_CLASSES = {"entry": "NXentry", "data": "NXdata", "image": "NXdata", "instrument": "NXinstrument",
            "detector": "NXdetector", "source": "NXsource", "sample": "NXsample",
            "beam": "NXbeam"}  # fmt: skip
_SIGNAL_KINDS = ("NXdata", "NXdetector")


@dataclass(slots=True)
class Layout:
    """What was found in a file."""

    names: dict[str, str] = field(default_factory=dict)
    """Name -> path; a path with `*` stands for several datasets, one after the other."""
    timestamp: str = ""
    """Path of the 64-bit time stamps."""
    seconds: tuple[str, str] | None = None
    """Paths of the time stamps' seconds and nanoseconds where they are apart."""
    step: str = ""
    masks: dict[str, str] = field(default_factory=dict)
    """Path -> path of its validity mask."""
    offsets: dict[str, str] = field(default_factory=dict)
    """Path -> path of the offsets of its readings."""
    experiment: str = ""
    run: int = 0

    def known(self) -> dict[str, list[str]]:
        """Return the names and fields, as errors list them."""
        return {name: [""] for name in self.names}


def discover(file: h5py.File) -> Layout:
    """Return what a file calls its data; nothing where it is of no known layout.

    Raises:
        DecodeError: it is damaged.
    """
    layout = Layout()
    with reading(f"the layout of {file.filename}"):
        if isinstance(child_of(file, OWN_GROUP), h5py.Group):
            _own(file, layout)
        if all(_is_dataset(child_of(file, path)) for path in (LCLS_SECONDS, LCLS_NANOSECONDS)):
            layout.seconds = (LCLS_SECONDS, LCLS_NANOSECONDS)
        signals: dict[str, str] = {}
        for path, group in _groups(file):
            kind, signal = class_of(path, group), _signal(path, group)
            _add(layout.names, path, group, signal if kind != "NXentry" else "")
            if kind == "NXdetector" and signal:
                base = path.rpartition("/")[2]
                for field_name in IMAGE_FIELDS:
                    layout.names.setdefault(f"{base}.{field_name}", signal)
            if signal:
                signals.setdefault(kind, signal)
        chosen = [_default(file), *(signals.get(kind, "") for kind in _SIGNAL_KINDS)]
        signal = next(filter(None, chosen), "")
        if signal:
            layout.names.setdefault(SIGNAL, signal)
    return layout


def child_of(group: h5py.Group, path: str) -> object:
    """Return what is at a path; None where nothing is, or a link leads nowhere."""
    try:
        return group.get(path)
    except (OSError, RuntimeError):
        # The file of an external link, which is there, is damaged.
        return None


def class_of(path: str, group: h5py.Group) -> str:
    """Return the NeXus class of a group, or that which its name implies; empty for none."""
    said = text_in(group.attrs.get("NX_class"))
    implied = _IMPLIED.fullmatch(path.rpartition("/")[2])
    return said or (_CLASSES[implied[1]] if implied else "")


def series(group: h5py.Group, pattern: str) -> list[str]:
    """Return the children of a group that a pattern names, in the order of their numbers."""
    return sorted((name for name in group if fnmatchcase(name, pattern)), key=natural)


def natural(text: str) -> tuple[Any, ...]:
    """Return a key that sorts numbers in names as numbers."""
    parts = re.split(r"(\d+)", text)
    return tuple((int(part), part) if part.isdigit() else part for part in parts)


def _own(file: h5py.File, layout: Layout) -> None:
    group = file[OWN_GROUP]
    place = f"/{OWN_GROUP}"
    if _is_dataset(child_of(group, "timestamp")):
        layout.timestamp = f"{place}/timestamp"
    if _is_dataset(child_of(group, "step")):
        layout.step = f"{place}/step"
    layout.experiment = text_in(_said(group, "experiment"))
    run = _said(group, "run")
    layout.run = max(int(run), 0) if run is not None else 0
    for kind, found in (("valid", layout.masks), ("offsets", layout.offsets)):
        for label, item in _datasets(child_of(group, kind)):
            path = text_in(item.attrs.get("dataset")) or f"/{label}"
            found[path] = item.name
            layout.names.setdefault(label, path)


def _said(group: h5py.Group, name: str) -> Any:
    """Return what an attribute says, or a dataset where the format has no attributes."""
    value = group.attrs.get(name)
    item = child_of(group, name) if value is None else None
    return item[()] if isinstance(item, h5py.Dataset) and item.shape == () else value


def _datasets(group: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield the datasets below a group with their names relative to it."""
    if not isinstance(group, h5py.Group) or depth > MAX_DEPTH:
        return
    for name in group:
        item = child_of(group, name)
        if isinstance(item, h5py.Dataset):
            yield prefix + name, item
        else:
            yield from _datasets(item, f"{prefix}{name}/", depth + 1)


def _groups(file: h5py.File) -> Iterator[tuple[str, h5py.Group]]:
    """Yield path and group of those that have a class, the outer ones first; follows links."""
    queue: list[tuple[str, h5py.Group, int]] = [("", file, 0)]
    seen = {_identity(file)}
    for path, group, depth in queue:
        if depth and class_of(path, group):
            yield path, group
        for name in group if depth < MAX_DEPTH and path != f"/{OWN_GROUP}" else ():
            if len(seen) >= MAX_OBJECTS:
                return
            below, below_path = child_of(group, name), f"{path}/{name}"
            # Only what belongs to a class is searched; at the root anything may be an entry.
            if isinstance(below, h5py.Group) and (not depth or class_of(below_path, below)):
                if _identity(below) in seen:
                    continue
                seen.add(_identity(below))
                queue.append((below_path, below, depth + 1))


def _identity(group: h5py.Group) -> tuple[int, Any]:
    info = h5py.h5o.get_info(group.id)
    return info.fileno, info.addr


def _add(names: dict[str, str], path: str, group: h5py.Group, signal: str) -> None:
    """Name the datasets of a group."""
    base = path.rpartition("/")[2]
    if signal:
        names.setdefault(base, signal)
    for name in group:
        if _is_dataset(child_of(group, name)):
            names.setdefault(f"{base}.{name}", f"{path}/{name}")


def _signal(path: str, group: h5py.Group) -> str:
    """Return the path of the data of a group; empty where it has none."""
    for name in (text_in(group.attrs.get("signal")), "data"):
        if name and _is_dataset(child_of(group, name)):
            return f"{path}/{name}"
    for name in group:
        item = child_of(group, name)
        if isinstance(item, h5py.Dataset) and "signal" in item.attrs:
            return f"{path}/{name}"
    # Detectors that write a file after the other link to each of them.
    is_series = any(re.fullmatch(r"data_\d+", name) for name in group)
    return f"{path}/data_*" if is_series and class_of(path, group) in _SIGNAL_KINDS else ""


def _default(file: h5py.File) -> str:
    """Return the path of the signal that the attributes `default` lead to."""
    group, path = file, ""
    for _ in range(MAX_DEPTH):
        name = text_in(group.attrs.get("default"))
        below = child_of(group, name) if name else None
        if not isinstance(below, h5py.Group):
            break
        group, path = below, f"{path}/{name}"
    return _signal(path, group) if "signal" in group.attrs else ""


def _is_dataset(item: object) -> bool:
    return isinstance(item, h5py.Dataset)


def text_in(value: object) -> str:
    """Return the text of an attribute; empty where it is none."""
    if isinstance(value, bytes):
        return value.decode(errors="replace").rstrip("\0")
    return value if isinstance(value, str) else ""


def known_paths(file: h5py.File) -> Mapping[str, list[str]]:
    """Return the paths of all datasets that a file holds itself, as errors list them."""
    paths: dict[str, list[str]] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            paths[f"/{name}"] = [""]

    with reading(f"the datasets of {file.filename}"):
        file.visititems(note)
    return paths
