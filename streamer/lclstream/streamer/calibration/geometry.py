"""Where the pixels of a detector are, from the facility's geometry text.

Each line of the text puts an object into its parent: names and numbers of both, a position in
micrometres, angles of rotation about z, y and x in degrees, and small tilts that are added to them:

```
# parent     0  object  0   x0       y0   z0    rot-z rot-y rot-x   tilt-z tilt-y tilt-x
JFCAMERA:V1  0  JUNGFRAU:V2  0   0   20625    0    90     0     0    0.0    0.0    0.0
IP:V1        0  JFCAMERA:V1  0   0       0  100000  0     0     0    0.0    0.0    0.0
```

Panels are objects whose name is that of a kind of panel. In psana's frame x points along the rows
of an image, y along its columns. Every operation is done in psana's order, so that a pixel falls
into the same place of an image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import cos, radians, sin
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError

Floats = npt.NDArray[np.float64]
Axes = tuple[Floats, Floats]

COLUMNS = 13
MAX_DEPTH = 16

ONE_JUNGFRAU = """
CAMERA  0  JUNGFRAU:V2  0   0 0 0   90 0 0   0 0 0
IP      0  CAMERA       0   0 0 0    0 0 0   0 0 0
"""
"""A single panel needs no geometry: psana turns its image by a quarter."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A kind of panel."""

    pixel_um: float
    axes: Callable[[], Axes]
    """Returns where the columns and the rows are within a panel, in micrometres."""


@dataclass(slots=True)
class Node:
    """An object of the geometry."""

    name: str
    index: int
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """About z, y and x, in degrees, tilts included."""
    children: list["Node"] = field(default_factory=list)


def parse(text: str, origin: str = "geometry") -> Node:
    """Return the outermost object that a geometry text describes.

    Raises:
        InvalidConfigError: a line cannot be understood, or nothing is described.
    """
    nodes: list[tuple[Node, str, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            nodes.append(_node(words))
        except ValueError as error:
            raise InvalidConfigError(f"{origin}: line {number}: {error}") from None
    return _tree(nodes, origin)


def pixel_coordinates(top: Node, origin: str = "geometry") -> tuple[Floats, Floats, float]:
    """Return x and y of all pixels, and the size of a pixel, in micrometres.

    Returns:
        x and y of shape (panels, rows, columns); the panels in the order of the text.

    Raises:
        InvalidConfigError: there are no panels of a kind that is known, or several kinds.
    """
    x, y, _ = _coordinates(top, 0, origin)
    return x, y, _panel_of(top, origin).pixel_um


def image_places(x: Floats, y: Floats, pixel_um: float) -> tuple[npt.NDArray[np.intp], ...]:
    """Return row and column of every pixel in an image."""
    return tuple(
        ((axis - (axis.min() - pixel_um / 2)) / pixel_um).astype(np.uint64).astype(np.intp)
        for axis in (x, y)
    )


def _node(words: list[str]) -> tuple[Node, str, int]:
    if len(words) != COLUMNS:
        raise ValueError(f"expected {COLUMNS} columns, got {len(words)}")
    parent, parent_index, name, index = words[0], int(words[1]), words[2], int(words[3])
    x, y, z, *turns = (float(word) for word in words[4:])
    if not all(map(np.isfinite, (x, y, z, *turns))):
        raise ValueError("a number is not finite")
    if parent.startswith("IP") and z > 0:
        # z points against the beam: no detector is in front of the interaction point.
        z = -z
    angles = (turns[0] + turns[3], turns[1] + turns[4], turns[2] + turns[5])
    return Node(name, index, (x, y, z), angles), parent, parent_index


def _tree(nodes: list[tuple[Node, str, int]], origin: str) -> Node:
    known = {(node.name, node.index): node for node, _, _ in nodes}
    if len(known) < len(nodes):
        raise InvalidConfigError(f"{origin}: an object is described twice")
    top: Node | None = None
    for node, parent, index in nodes:
        owner = known.get((parent, index))
        if owner is None:
            owner = top = known[parent, index] = Node(parent, index)
        if owner is node:
            raise InvalidConfigError(f"{origin}: {node.name} {node.index} is its own parent")
        owner.children.append(node)
    if top is None:
        raise InvalidConfigError(f"{origin}: nothing is outermost")
    return top


def _coordinates(node: Node, depth: int, origin: str) -> tuple[Floats, Floats, Floats]:
    if depth > MAX_DEPTH:
        raise InvalidConfigError(f"{origin}: objects are in each other without end")
    kind = PANELS.get(node.name)
    if kind is not None:
        columns, rows = kind.axes()
        x, y = np.meshgrid(columns, rows)
        return _moved(node, x[None], y[None], np.zeros((1, *x.shape)))
    if not node.children:
        known = ", ".join(sorted(PANELS))
        raise InvalidConfigError(
            f"{origin}: {node.name!r} is no kind of panel that is known; these are: {known}"
        )
    parts = [_coordinates(child, depth + 1, origin) for child in node.children]
    if len({part[0].shape[1:] for part in parts}) > 1:
        raise InvalidConfigError(f"{origin}: the panels in {node.name!r} have different shapes")
    return _moved(node, *(np.concatenate(axis) for axis in zip(*parts, strict=True)))


def _moved(node: Node, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
    """Return coordinates in the frame of the parent."""
    about_z, about_y, about_x = node.angles
    x1, y1 = _turned(x, y, about_z)
    z2, x2 = _turned(z, x1, about_y)
    y3, z3 = _turned(y1, z2, about_x)
    return x2 + node.position[0], y3 + node.position[1], z3 + node.position[2]


def _turned(x: Floats, y: Floats, degrees: float) -> Axes:
    sine, cosine = sin(radians(degrees)), cos(radians(degrees))
    return x * cosine - y * sine, y * cosine + x * sine


def _panel_of(node: Node, origin: str) -> Panel:
    """Return the kind of the first panel."""
    while node.name not in PANELS:
        if not node.children:
            raise InvalidConfigError(f"{origin}: there are no panels")
        node = node.children[0]
    return PANELS[node.name]


def _jungfrau_columns() -> Floats:
    starts = np.array((-512 - 2.5, -256.5, 1.5, 256 + 3.5)) * 75
    chip = np.arange(256) * 75
    return np.hstack([chip + start for start in starts])


def _jungfrau_v1() -> Axes:
    starts, chip = np.array((256.5, -1.5)) * 75, np.arange(256) * 75
    return _jungfrau_columns(), np.hstack([start - chip for start in starts])


def _jungfrau_v2() -> Axes:
    """Return the axes with rows the other way, and wide pixels where their centres are."""
    starts, chip = np.array((-256.5, 1.5)) * 75, np.arange(256) * 75
    columns, rows = _jungfrau_columns(), np.hstack([start + chip for start in starts])
    for axis, edges in ((columns, (255, 511, 767)), (rows, (255,))):
        for edge in edges:
            axis[edge] += 37.5
            axis[edge + 1] -= 37.5
    return columns, rows


def _epix10ka() -> Axes:
    right = np.arange(192) * 100 + 225 - 50.0
    up = np.arange(176) * 100 + 225 - 50.0
    return np.hstack([-right[::-1], right]), np.hstack([up[::-1], -up])


PANELS: Mapping[str, Panel] = MappingProxyType(
    {
        "EPIX10KA:V1": Panel(100, _epix10ka),
        "JUNGFRAU:V1": Panel(75, _jungfrau_v1),
        "JUNGFRAU:V2": Panel(75, _jungfrau_v2),
    }
)
"""The kinds of panels, by the names that they have in a geometry."""
