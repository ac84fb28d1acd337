"""Where the chunks of a dataset lie: the index of an HDF5 file, written without the library.

It is the B-tree of version 1 that every HDF5 library reads. Its nodes have room for 64 entries;
an entry is a key (size of the chunk, which filters it did without, its place in the dataset)
and an address: of the chunk in the leaves, of a node below in the others. A node ends with one
more key, the first place behind it. All nodes but the last of a level are full.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Twice the rank of such trees that is implied by version 0 of the file format.
NODE_ENTRIES = 64
HEADER = np.dtype(
    [
        ("signature", "S4"), ("type", "u1"), ("level", "u1"), ("used", "<u2"),
        ("left", "<u8"), ("right", "<u8"),
    ]
)  # fmt: skip
RAW_DATA = 1
NOWHERE = 0xFFFFFFFFFFFFFFFF

Numbers = npt.NDArray[np.unsignedinteger]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """The index of one dataset whose chunks follow each other along axis 0."""

    rank: int
    """Axes of the dataset."""
    chunk_rows: int
    """Steps along axis 0 in a chunk."""
    count: int
    """Chunks; at least 1."""
    levels: tuple[int, ...] = field(init=False)
    """Nodes of each level, the leaves first."""

    def __post_init__(self) -> None:
        levels = [-(-self.count // NODE_ENTRIES)]
        while levels[-1] > 1:
            levels.append(-(-levels[-1] // NODE_ENTRIES))
        object.__setattr__(self, "levels", tuple(levels))

    @property
    def nbytes(self) -> int:
        """Size of all nodes."""
        return sum(self.levels) * self._node_bytes

    @property
    def root(self) -> int:
        """Where the topmost node lies among them."""
        return self.nbytes - self._node_bytes

    def write(self, image: Image, offset: int, base: int = 0) -> None:
        """Write all but what `place` writes.

        Args:
            image: a part of the file.
            offset: where the index begins in it.
            base: where this part of the file begins.
        """
        image[offset : offset + self.nbytes] = 0
        entries, per_node = self.count, self.chunk_rows
        for level, nodes in enumerate(self.levels):
            start = offset + sum(self.levels[:level]) * self._node_bytes
            self._write_headers(image, start, base, level, entries)
            self._write_keys(image, start, entries, per_node)
            if level:
                below = base + start - self.levels[level - 1] * self._node_bytes
                addresses = below + self._node_bytes * np.arange(entries, dtype=np.uint64)
                self._entries(image, start, nodes)["child"] = _in_nodes(addresses, nodes)
            entries, per_node = nodes, per_node * NODE_ENTRIES

    def place(
        self,
        image: Image,
        offset: int,
        addresses: Numbers,
        sizes: Numbers | int,
        skipped: Numbers | int,
    ) -> None:
        """Write where the chunks lie.

        Args:
            image: a part of the file.
            offset: where the index begins in it.
            addresses: of each chunk, in the file.
            sizes: of each chunk in bytes, or of all alike.
            skipped: bit i is set where a chunk did without filter i; for each, or for all alike.
        """
        leaves = self.levels[0]
        entries = self._entries(image, offset, leaves)
        entries["child"] = _in_nodes(addresses, leaves)
        entries["size"] = _in_nodes(sizes, leaves)
        entries["skipped"] = _in_nodes(skipped, leaves)
        # The keys of the nodes above repeat those of the first chunks below.
        start = offset
        for below, nodes in zip(self.levels, self.levels[1:], strict=False):
            first = self._entries(image, start, below)[:, 0]
            start += below * self._node_bytes
            above = self._entries(image, start, nodes)
            for name in ("size", "skipped"):
                above[name] = _in_nodes(first[name], nodes)

    @property
    def _entry(self) -> np.dtype[np.void]:
        place = ("<u8", (self.rank + 1,))
        return np.dtype([("size", "<u4"), ("skipped", "<u4"), ("at", *place), ("child", "<u8")])

    @property
    def _node_bytes(self) -> int:
        # One key more than there are addresses.
        return HEADER.itemsize + (NODE_ENTRIES + 1) * self._entry.itemsize - 8

    def _entries(self, image: Image, offset: int, nodes: int) -> npt.NDArray[np.void]:
        """Return the entries of some nodes that follow each other, shape (nodes, 64)."""
        strides = (self._node_bytes, self._entry.itemsize)
        shape = (nodes, NODE_ENTRIES)
        return np.ndarray(shape, self._entry, image.data, offset + HEADER.itemsize, strides)

    def _write_headers(
        self, image: Image, offset: int, base: int, level: int, entries: int
    ) -> None:
        nodes = self.levels[level]
        headers = np.ndarray((nodes,), HEADER, image.data, offset, (self._node_bytes,))
        addresses = base + offset + self._node_bytes * np.arange(nodes, dtype=np.uint64)
        headers["signature"], headers["type"], headers["level"] = b"TREE", RAW_DATA, level
        headers["used"] = NODE_ENTRIES
        headers["used"][-1] = entries - (nodes - 1) * NODE_ENTRIES
        headers["left"][0] = headers["right"][-1] = NOWHERE
        headers["left"][1:], headers["right"][:-1] = addresses[:-1], addresses[1:]

    def _write_keys(self, image: Image, offset: int, entries: int, step: int) -> None:
        """Write the places of the keys, `step` rows apart, and those at the ends of the nodes."""
        nodes = -(-entries // NODE_ENTRIES)
        keys = self._entries(image, offset, nodes)["at"]
        keys[..., 0] = _in_nodes(step * np.arange(entries, dtype=np.uint64), nodes)
        last = entries - (nodes - 1) * NODE_ENTRIES
        ends = [*range(NODE_ENTRIES * step, nodes * NODE_ENTRIES * step, NODE_ENTRIES * step)]
        for node, end in enumerate([*ends, self.count * self.chunk_rows]):
            used = last if node == nodes - 1 else NODE_ENTRIES
            at = offset + node * self._node_bytes + HEADER.itemsize + used * self._entry.itemsize
            # Behind size and filters.
            image[at + 8 : at + 16].view("<u8")[0] = end


def _in_nodes(values: Numbers | int, nodes: int) -> Numbers | int:
    """Return the values of all entries in the shape of their nodes, the last one filled up."""
    if isinstance(values, int):
        return values
    room = np.zeros(nodes * NODE_ENTRIES, values.dtype)
    room[: len(values)] = values
    return room.reshape(nodes, NODE_ENTRIES)


def starts_of(sizes: Sequence[int] | Numbers, base: int) -> npt.NDArray[np.uint64]:
    """Return where things of these sizes lie one after the other."""
    ends = np.cumsum(sizes, dtype=np.uint64)
    return base + np.concatenate([np.zeros(1, np.uint64), ends[:-1]])
