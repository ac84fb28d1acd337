"""Questions that every lane has to answer."""

import asyncio
from collections.abc import Iterable


class Round:
    """One question to several lanes; over when each has answered or gone."""

    def __init__(self, lanes: Iterable[int]) -> None:
        self._pending = set(lanes)
        self._over = asyncio.Event()
        self._look()

    def answered(self, lane: int) -> None:
        """Take note that a lane has answered, or cannot any more."""
        self._pending.discard(lane)
        self._look()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for all answers; return whether all have come."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

    def _look(self) -> None:
        if not self._pending:
            self._over.set()


class Rounds:
    """All questions that are open."""

    def __init__(self) -> None:
        self._open: dict[int, Round] = {}
        self._next = 0

    def begin(self, lanes: Iterable[int]) -> tuple[int, Round]:
        """Open a question; returns what its answers have to carry."""
        self._next += 1
        self._open[self._next] = Round(lanes)
        return self._next, self._open[self._next]

    def end(self, token: int) -> None:
        """Forget a question."""
        self._open.pop(token, None)

    def answered(self, token: int | None, lane: int) -> None:
        """Take note of an answer."""
        if token in self._open:
            self._open[token].answered(lane)

    def gone(self, lane: int) -> None:
        """A lane answers no more."""
        for each in list(self._open.values()):
            each.answered(lane)
