"""The bound on memory, and the pool behind it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclstream.buffer.memory import CHUNK_BYTES, MIB, Block, Memory, class_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, CHUNK_BYTES),
        (CHUNK_BYTES, CHUNK_BYTES),
        (CHUNK_BYTES + 1, MIB // 2),
        (MIB, MIB),
        (MIB + 1, 2 * MIB),
        (5 * MIB, 5 * MIB),
    ],
)
def test_classes(size: int, expected: int) -> None:
    assert class_bytes(size) == expected


def test_block_is_used_again_after_its_last_reference() -> None:
    memory = Memory(4 * MIB)
    block = memory.take(MIB, stuck=False)
    assert block is not None
    block.hold()
    block.release()
    assert memory.held_bytes == MIB
    block.release()
    assert memory.held_bytes == 0
    assert memory.take(MIB, stuck=False) is block
    block.release()
    memory.close()


def test_bound_is_kept() -> None:
    memory = Memory(2 * MIB)
    first, second = memory.take(MIB, stuck=False), memory.take(MIB, stuck=False)
    assert first is not None
    assert second is not None
    assert memory.take(1, stuck=False) is None
    first.release()
    assert memory.take(2 * MIB, stuck=False) is None
    assert memory.take(CHUNK_BYTES, stuck=False) is not None


def test_block_above_the_bound_only_when_nothing_else_helps() -> None:
    memory = Memory(MIB)
    assert memory.take(3 * MIB, stuck=False) is None
    big = memory.take(3 * MIB, stuck=True)
    assert big is not None
    assert memory.take(1, stuck=False) is None
    big.release()
    assert memory.held_bytes == 0
    assert memory.take(3 * MIB, stuck=True) is not None
    assert memory.peak_bytes == 3 * MIB


def test_machine_without_memory_means_wait(caplog: pytest.LogCaptureFixture) -> None:
    # No machine has so much address space.
    memory = Memory(1 << 62)
    assert memory.take(1 << 60, stuck=True) is None
    assert memory.held_bytes == 0
    assert [record.getMessage() for record in caplog.records] == ["memory_exhausted"]


@given(st.lists(st.tuples(st.integers(1, 5 * MIB), st.booleans()), max_size=40))
def test_counts_and_pool_stay_under_the_bound(steps: list[tuple[int, bool]]) -> None:
    capacity = 8 * MIB
    memory = Memory(capacity)
    held: list[Block] = []
    for size, give_back in steps:
        if give_back and held:
            held.pop(0).release()
        block = memory.take(size, stuck=not held)
        if block is not None:
            assert block.size_bytes >= size
            held.append(block)
        assert memory.held_bytes == sum(block.size_bytes for block in held)
        assert memory.held_bytes + memory._free_bytes <= capacity
    for block in held:
        block.release()
    assert memory.held_bytes == 0
    memory.close()
