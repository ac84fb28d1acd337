"""Memory that is lent out as views is never written to while somebody looks."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lclstream.buffer.sp import LARGE_BYTES, header
from lclstream.buffer.views import CHUNK_BYTES, KEPT_MEMORIES, Memories, MessageReader

SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(0, 2 * CHUNK_BYTES),
    st.sampled_from([LARGE_BYTES + i for i in range(-10, 3)]),
    st.sampled_from([CHUNK_BYTES + i for i in range(-18, 2)]),
)


def test_memory_comes_back_when_all_views_are_gone() -> None:
    memories = Memories()
    view = memories.take(1000)
    part = view[10:20]
    part[:] = b"0123456789"
    del view
    # A slice is enough to keep it.
    others = [memories.take(1000) for _ in range(3)]
    for other in others:
        other[:] = bytes(1000)
    assert bytes(part) == b"0123456789"
    kept = len(memories._kept)
    del part, others, other
    memories.take(1000)
    assert len(memories._kept) == kept == 4


def test_only_so_many_are_remembered() -> None:
    memories = Memories()
    views = [memories.take(1000) for _ in range(3 * KEPT_MEMORIES)]
    assert len(memories._kept) == KEPT_MEMORIES
    for i, view in enumerate(views):
        view[:] = bytes([i]) * 1000
    assert all(bytes(view) == bytes([i]) * 1000 for i, view in enumerate(views))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(SIZES, max_size=12),
    st.lists(st.integers(1, CHUNK_BYTES), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_reader_against_simple_parser(sizes: list[int], cuts: list[int], keep: int) -> None:
    messages = [bytes([i]) * size for i, size in enumerate(sizes)]
    data = b"".join(header(len(message)) + message for message in messages)
    reader = MessageReader(Memories(), 1 << 20)
    views: list[tuple[int, memoryview]] = []
    position, count, turn = 0, 0, 0
    cuts = [*cuts, 50_000]
    while position < len(data):
        space = reader.space()
        assert len(space)
        size = min(cuts[turn % len(cuts)], len(space), len(data) - position)
        turn += 1
        space[:size] = data[position : position + size]
        del space
        position += size
        for view in reader.filled(size):
            views.append((count, view))
            count += 1
        # Some views are dropped early, so that memory is used again.
        views = [(index, view) for index, view in views if index % keep == 0]
    assert count == len(messages)
    assert not reader.partial
    assert all(bytes(view) == messages[index] for index, view in views)
