"""Reads what CrystFEL's geometry files say about where panels are, and which regions are bad.

Lengths are in pixels, the origin is the beam. What concerns files, masks and energies is passed
over.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError

MAX_BYTES = 16 << 20
MAX_PANELS = 10_000
# Along one axis of an array.
MAX_PIXELS = 1 << 24
# One term of `fs = -0.0036320x +0.9999934y`.
TERM = re.compile(r"([+-]?)\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)?\s*([xyz])")
NEEDED = ("min_fs", "max_fs", "min_ss", "max_ss", "corner_x", "corner_y", "fs", "ss")
LIMITS = ("fs", "ss", "x", "y")


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle that is bad: in pixels of a panel's data, or in the laboratory."""

    panel: str
    """Empty: of all panels."""
    limits: Mapping[str, tuple[float, float]]
    """Axis (`fs` and `ss`, or `x` and `y`) -> least and greatest coordinate."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: where it lies in the data, and where in the laboratory."""

    name: str
    min_fs: int
    max_fs: int
    min_ss: int
    max_ss: int
    corner: tuple[float, float]
    """x and y of the corner of the first pixel."""
    fs: tuple[float, float]
    """x and y of the step to the next pixel in a row."""
    ss: tuple[float, float]
    """x and y of the step to the next row."""
    index: int = 0
    """Which panel of a stack it lies in."""
    bad: tuple[Region, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.max_ss - self.min_ss + 1, self.max_fs - self.min_fs + 1

    def radius(self) -> npt.NDArray[np.float64]:
        """Return the distance of each pixel's centre from the beam; NaN where it is bad."""
        rows, columns = self.shape
        ss, fs = np.arange(rows)[:, None] + 0.5, np.arange(columns)[None, :] + 0.5
        x, y = (self.corner[i] + fs * self.fs[i] + ss * self.ss[i] for i in (0, 1))
        # Regions in the data are named by whole pixels.
        place = {"x": x, "y": y, "fs": fs - 0.5 + self.min_fs, "ss": ss - 0.5 + self.min_ss}
        radius = np.hypot(x, y)
        for region in self.bad:
            inside = np.ones(radius.shape, bool)
            for axis, (least, greatest) in region.limits.items():
                inside &= (place[axis] >= least) & (place[axis] <= greatest)
            radius[inside] = np.nan
        return radius


def read_geometry(path: Path) -> tuple[Panel, ...]:
    """Return the panels of a geometry file.

    Raises:
        InvalidConfigError: it cannot be read; names the line or panel that is not understood.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfigError(f"the geometry {path} cannot be read: {error}") from None
    if len(raw) > MAX_BYTES:
        raise InvalidConfigError(f"the geometry {path} is larger than {MAX_BYTES} bytes")
    return parse_geometry(text, str(path))


def parse_geometry(text: str, where: str = "geometry") -> tuple[Panel, ...]:
    """Return the panels that a geometry describes.

    Raises:
        InvalidConfigError: names the line or panel that is not understood.
    """
    common: dict[str, str] = {}
    panels: dict[str, dict[str, str]] = {}
    regions: dict[str, dict[str, str]] = {}
    for number, key, value in _lines(text, where):
        name, slash, what = key.rpartition("/")
        if not slash:
            common[what] = value
        elif name.startswith("bad"):
            regions.setdefault(name, {})[what] = value
        else:
            if len(panels) > MAX_PANELS:
                raise InvalidConfigError(f"{where}, line {number}: more than {MAX_PANELS} panels")
            # What stands without a panel's name holds for the panels that follow.
            panels.setdefault(name, dict(common))[what] = value
    bad = [_region(name, keys, where) for name, keys in regions.items()]
    found = tuple(_panel(name, keys, bad, where) for name, keys in panels.items())
    if not found:
        raise InvalidConfigError(f"{where} describes no panels")
    return found


def _lines(text: str, where: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition(";")[0].strip()
        if not content:
            continue
        key, equals, value = content.partition("=")
        if not equals:
            raise InvalidConfigError(
                f"{where}, line {number}: expected KEY = VALUE, got {content!r}"
            )
        yield number, key.strip(), value.strip()


def _panel(name: str, keys: Mapping[str, str], bad: list[Region], where: str) -> Panel:
    missing = [key for key in NEEDED if key not in keys]
    if missing:
        raise InvalidConfigError(f"{where}: panel {name!r} lacks {', '.join(missing)}")
    place = f"{where}: {name}"
    limits = {key: int(_number(keys[key], f"{place}/{key}")) for key in NEEDED[:4]}
    for axis in ("fs", "ss"):
        if not 0 <= limits[f"min_{axis}"] <= limits[f"max_{axis}"] < MAX_PIXELS:
            raise InvalidConfigError(f"{place} has impossible limits of {axis}")
    x, y = (_number(keys[key], f"{place}/{key}") for key in ("corner_x", "corner_y"))
    fs, ss = (_vector(keys[key], f"{place}/{key}") for key in ("fs", "ss"))
    index = _stack_index(keys, place)
    mine = tuple(region for region in bad if region.panel in ("", name))
    return Panel(**limits, name=name, corner=(x, y), fs=fs, ss=ss, index=index, bad=mine)


def _stack_index(keys: Mapping[str, str], place: str) -> int:
    """Return the one index of the dimensions that is a number: that of a stack's panel."""
    given = [keys[key] for key in sorted(keys) if re.fullmatch(r"dim\d+", key)]
    numbers = [value for value in given if value.isdigit()]
    # A leading one may choose an event of a file.
    return int(_number(numbers[-1], place)) if numbers and len(given) > 3 else 0


def _region(name: str, keys: Mapping[str, str], where: str) -> Region:
    limits = {}
    for axis in LIMITS:
        least, greatest = keys.get(f"min_{axis}"), keys.get(f"max_{axis}")
        if least is not None and greatest is not None:
            place = f"{where}: {name}"
            limits[axis] = (_number(least, place), _number(greatest, place))
    if set(limits) not in ({"fs", "ss"}, {"x", "y"}):
        raise InvalidConfigError(f"{where}: {name} needs limits of fs and ss, or of x and y")
    return Region(keys.get("panel", ""), limits)


def _number(text: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise InvalidConfigError(f"{place}: expected a number, got {text!r}")
    return number


def _vector(text: str, place: str) -> tuple[float, float]:
    """Return x and y of `-0.0036320x +0.9999934y`; a part along the beam is left out."""
    vector = dict.fromkeys("xyz", 0.0)
    rest = text.strip()
    while rest:
        term = TERM.match(rest)
        if term is None:
            raise InvalidConfigError(f"{place}: expected a vector such as 1.0x -0.5y, got {text!r}")
        sign, number, axis = term.groups()
        vector[axis] += _number(f"{sign}{number or 1}", place)
        rest = rest[term.end() :].strip()
    return vector["x"], vector["y"]
