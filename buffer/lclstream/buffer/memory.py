"""The buffer's memory: pooled, counted, bounded in bytes.

Everything that holds payload takes a `Block` from here, chunks and bodies that are only being
received included, so `held_bytes` is all there is. A block counts with its whole size.
"""

import logging
import mmap
from collections import defaultdict
from collections.abc import Iterator

logger = logging.getLogger(__name__)

MIB = 1024 * 1024
CHUNK_BYTES = 256 * 1024
HUGE_PAGE_BYTES = 2 * MIB


def class_bytes(size_bytes: int) -> int:
    """Return the size of the block that is used for so many bytes."""
    if size_bytes <= CHUNK_BYTES:
        return CHUNK_BYTES
    if size_bytes <= MIB // 2:
        return MIB // 2
    return -(-size_bytes // MIB) * MIB


class Block:
    """A piece of memory with one reference for each who needs it."""

    __slots__ = ("_map", "_memory", "overshoot", "references", "size_bytes", "view")

    def __init__(self, memory: "Memory", size_bytes: int) -> None:
        self._memory = memory
        self._map = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size_bytes >= HUGE_PAGE_BYTES:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.size_bytes = size_bytes
        self.view = memoryview(self._map)
        self.references = 0
        self.overshoot = False
        """Whether it was admitted above the bound."""

    def hold(self) -> None:
        """Add a reference."""
        self.references += 1

    def release(self) -> None:
        """Drop a reference; with the last one the block goes back to the memory."""
        self.references -= 1
        if not self.references:
            self._memory.take_back(self)

    def free(self) -> None:
        """Give the memory back to the system, as soon as no view is left."""
        self.view.release()
        del self._map


class Memory:
    """Hands out blocks up to a bound; for one thread.

    Blocks that came back are kept for use again as long as they and the held ones fit under
    the bound: fresh memory costs a page fault for every page. They are never zeroed.

    Args:
        capacity_bytes: the bound on `held_bytes`. Above it a block is handed out only to who
            says that nothing else would ever make room: a message larger than the bound is
            served alone.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self.peak_bytes = 0
        self.zeros = Block(self, mmap.PAGESIZE)
        """A page of zeros that is always held and not counted: the header of an empty message."""
        self.zeros.hold()
        self._free: defaultdict[int, list[Block]] = defaultdict(list)
        self._free_bytes = 0

    def take(self, size_bytes: int, *, stuck: bool) -> Block | None:
        """Return a block with one reference, or None if there is no room.

        Args:
            size_bytes: what it must hold at least.
            stuck: nothing that is held would go away by itself.
        """
        size = class_bytes(size_bytes)
        overshoot = self.held_bytes + size > self.capacity_bytes
        if overshoot and not stuck:
            return None
        block = self._reuse(size) or self._fresh(size)
        if block is None:
            return None
        block.overshoot = overshoot
        self.held_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        block.hold()
        return block

    def _fresh(self, size: int) -> Block | None:
        try:
            return Block(self, size)
        except OSError as error:
            # The machine has less than the bound: wait until something is given back.
            logger.error(  # noqa: TRY400
                "memory_exhausted", extra={"wanted_bytes": size, "reason": str(error)}
            )
            return None

    def take_back(self, block: Block) -> None:
        """Keep a block that nobody refers to, or give it to the system."""
        self.held_bytes -= block.size_bytes
        if self.held_bytes + self._free_bytes + block.size_bytes > self.capacity_bytes:
            block.free()
            return
        self._free[block.size_bytes].append(block)
        self._free_bytes += block.size_bytes

    def close(self) -> None:
        """Give all kept blocks to the system."""
        self.zeros.free()
        for block in self._kept():
            block.free()
        self._free.clear()
        self._free_bytes = 0

    def _kept(self) -> Iterator[Block]:
        for blocks in self._free.values():
            yield from blocks

    def _reuse(self, size: int) -> Block | None:
        """Return a kept block of the size, or make room for a new one."""
        blocks = self._free[size]
        if blocks:
            self._free_bytes -= size
            # The last one used is still in the cache.
            return blocks.pop()
        while self._free_bytes and (
            self.held_bytes + size + self._free_bytes > self.capacity_bytes
        ):
            victim = next(blocks for blocks in self._free.values() if blocks).pop()
            self._free_bytes -= victim.size_bytes
            victim.free()
        return None
