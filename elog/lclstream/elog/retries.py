"""Trying again: for how long, how often, and what is in trouble meanwhile."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from lclstream.core.errors import (
    InvalidConfigError,
    LclstreamError,
    NotFoundError,
    RequestError,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


class GivenUpError(RequestError):
    """Something was retried until it could not be of use any more."""


class Retries:
    """Repeats actions on services that are down; remembers which ones are."""

    def __init__(self, *, first_s: float, most_s: float, unknown_s: float) -> None:
        """Set the pace.

        Args:
            first_s: pause after the first failure; it doubles from there.
            most_s: longest pause.
            unknown_s: for how long to ask again for something that is not found.
        """
        self._first_s, self._most_s, self._unknown_s = first_s, most_s, unknown_s
        self._failing: Counter[str] = Counter()
        self.troubles: dict[str, str] = {}
        """Service -> why it cannot be used now."""
        self.count = 0
        """How many attempts failed."""

    async def until_done(
        self, service: str, action: Callable[[], Awaitable[T]], useless: Callable[[], bool]
    ) -> T:
        """Repeat an action while that can help.

        Args:
            service: what is in trouble while the action fails.
            action: is called again after each failure.
            useless: whether success would come too late.

        Raises:
            RequestError: refused for good; GivenUpError when it became useless.
        """
        pause_s = self._first_s
        began = asyncio.get_running_loop().time()
        has_failed = False
        try:
            while True:
                try:
                    return await action()
                except LclstreamError as error:
                    waited_s = asyncio.get_running_loop().time() - began
                    if not self._may_help(error, waited_s):
                        raise
                    if useless():
                        raise GivenUpError(f"too old after retries: {error}") from error
                    self._failing[service] += not has_failed
                    has_failed = True
                    self._note(service, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, self._most_s)
        finally:
            self._failing[service] -= has_failed
            # Who gives up is not the last one that the service keeps waiting.
            if not self._failing[service]:
                del self._failing[service]
                self.troubles.pop(service, None)

    def _may_help(self, error: LclstreamError, waited_s: float) -> bool:
        if isinstance(error, NotFoundError):
            return waited_s < self._unknown_s
        # A wrong configuration, such as a password file that is gone, is not the event's fault.
        return isinstance(error, InvalidConfigError) or not isinstance(error, RequestError)

    def _note(self, service: str, error: LclstreamError) -> None:
        self.count += 1
        if self.troubles.get(service) != str(error):
            logger.warning("service_trouble", extra={"service": service, "reason": str(error)})
        self.troubles[service] = str(error)
