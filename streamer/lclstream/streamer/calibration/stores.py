"""Constants from a file or a folder.

A file is a numpy archive (`.npz`) or HDF5 (`.h5`, `.hdf5`). The constants in it are called as in
the module `constants`, below the name of the detector or, for a file of one detector, without:

```
jungfrau/pedestals   (3, 1, 512, 1024) float32
jungfrau/pixel_gain  (3, 1, 512, 1024) float32
jungfrau/geometry    text
```

In a folder there is for each detector either such a file, `<detector>.npz` or `<detector>.h5`, or a
folder of arrays, `<detector>/<name>.npy` and `<detector>/geometry.data`. There, constants that are
valid for some runs only have a folder of their own and the runs as name:
`<detector>/pedestals/12-17.npy`, `<detector>/pedestals/18-end.npy`. Of those that fit, the one that
begins last counts.
"""

import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import near
from lclstream.streamer.calibration.constants import (
    ARRAYS,
    GEOMETRY,
    NAMES,
    Array,
    Constants,
    Detector,
)

HDF5_SUFFIXES = (".h5", ".hdf5")
FILE_SUFFIXES = (".npz", *HDF5_SUFFIXES)
GEOMETRY_SUFFIXES = (".data", ".txt")
_RUNS = re.compile(r"(\d+)-(\d+|end)")
LAST_RUN = 9999


class FileStore:
    """Constants in one file or folder."""

    def __init__(self, path: Path) -> None:
        """Look whether there is something of the kind.

        Raises:
            InvalidConfigError: there is nothing, or a file of another kind.
        """
        self._path = path
        if not path.exists():
            raise InvalidConfigError(f"calibration: there is no {path}")
        if path.is_file() and path.suffix not in FILE_SUFFIXES:
            kinds = ", ".join(FILE_SUFFIXES)
            raise InvalidConfigError(f"calibration: {path} is neither a folder nor {kinds}")

    def constants(self, detector: Detector, experiment: str, run: int) -> Constants:
        """Return the constants of a detector that are valid for a run.

        Raises:
            InvalidConfigError: there are none, or they cannot be read.
        """
        del experiment
        if self._path.is_file():
            return as_constants(_of_detector(self._path, detector.name), str(self._path))
        for suffix in FILE_SUFFIXES:
            path = self._path / f"{detector.name}{suffix}"
            if path.is_file():
                return as_constants(_of_detector(path, detector.name), str(path))
        folder = self._path / detector.name
        if not folder.is_dir():
            there = sorted({each.stem for each in self._path.iterdir()})
            hint = near(detector.name, there) or f"; there are: {', '.join(there) or 'none'}"
            raise InvalidConfigError(
                f"calibration: {self._path} has nothing for {detector.name!r}{hint}"
            )
        return as_constants(_of_folder(folder, run), str(folder))


def as_constants(found: Mapping[str, Any], origin: str) -> Constants:
    """Return what was found as constants.

    Raises:
        InvalidConfigError: an array does not hold numbers, or the geometry is no text.
    """
    arrays: dict[str, Array] = {}
    for name in ARRAYS:
        if name in found:
            array = np.asarray(found[name])
            if array.dtype.kind not in "biuf":
                raise InvalidConfigError(f"{origin}: constants {name!r} are {array.dtype}")
            arrays[name] = array
    geometry = found.get(GEOMETRY, "")
    if isinstance(geometry, np.ndarray):
        geometry = geometry.reshape(-1)[0] if geometry.size == 1 else None
    if isinstance(geometry, bytes):
        geometry = geometry.decode(errors="replace")
    if not isinstance(geometry, str):
        raise InvalidConfigError(f"{origin}: {GEOMETRY!r} must be one text")
    return Constants(arrays=arrays, geometry=str(geometry), origin=origin)


def _of_detector(path: Path, detector: str) -> dict[str, Any]:
    """Return the constants in a file, those of the detector or those of the only one."""
    with _readable(path):
        if path.suffix == ".npz":
            # Opened here, because numpy leaves a file open that is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[key] for name, key in _own(archive.files, detector).items()}
        import h5py

        with h5py.File(path) as file:
            keys = [f"{group}/{name}" for group in file for name in _group(file[group])]
            found = _own([*file, *keys], detector)
            return {name: file[key][()] for name, key in found.items()}


def _group(found: Any) -> list[str]:
    return list(found) if hasattr(found, "keys") else []


def _own(keys: Iterable[str], detector: str) -> dict[str, str]:
    """Return constants -> key of those that belong to a detector."""
    there = set(keys)
    own = {name: f"{detector}/{name}" for name in NAMES if f"{detector}/{name}" in there}
    return own or {name: name for name in NAMES if name in there}


def _of_folder(folder: Path, run: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ARRAYS:
        path = _valid(folder / name, run, (".npy",))
        if path is not None:
            with _readable(path):
                found[name] = np.load(path, allow_pickle=False)
    path = _valid(folder / GEOMETRY, run, GEOMETRY_SUFFIXES)
    if path is not None:
        with _readable(path):
            found[GEOMETRY] = path.read_text()
    return found


def _valid(place: Path, run: int, suffixes: tuple[str, ...]) -> Path | None:
    """Return the file of constants that is valid for a run."""
    fitting: list[tuple[int, int, Path]] = []
    for path in place.iterdir() if place.is_dir() else ():
        match = _RUNS.fullmatch(path.stem)
        if match and path.suffix in suffixes:
            first, last = int(match[1]), LAST_RUN if match[2] == "end" else int(match[2])
            if first <= run <= last:
                # The narrower range wins among those that begin together.
                fitting.append((first, -last, path))
    if fitting:
        return max(fitting)[2]
    plain = [place.with_name(place.name + suffix) for suffix in suffixes]
    return next((path for path in plain if path.is_file()), None)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into an error that names it.

    Raises:
        InvalidConfigError: it is not what its name says.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidConfigError(f"calibration: cannot read {path}: {error}") from error
