from collections.abc import Iterator

import pytest
from tests.buffer.loss.nursery import Nursery, nursery_at


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Processes for the tests of a file; what a test leaves is killed at its end."""
    with nursery_at(tmp_path_factory.mktemp("processes")) as made:
        yield made
