"""Functions on arrays as machine code; imported only where numba is installed."""

import logging
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import numba

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class MachineCode(Generic[Arguments, Result]):
    """A function that is compiled when it is called first, and kept on disk for the next process.

    Where no folder may be written it is compiled in each process, also where what is on the disk
    cannot be read or the disk is full. It runs without the interpreter's lock. It may call
    nothing but numpy, and must not raise.
    """

    def __init__(self, function: Callable[Arguments, Result]) -> None:
        self.plain = function
        """The function as it is written, for comparison."""
        self._compiled: Callable[..., Any] | None = None
        self._is_kept = True

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Call the function."""
        if self._compiled is None:
            self._compile()
        assert self._compiled is not None  # noqa: S101
        if not self._is_kept:
            return self._compiled(*args, **kwargs)  # type: ignore[no-any-return]
        try:
            return self._compiled(*args, **kwargs)  # type: ignore[no-any-return]
        except Exception as error:
            # Damaged files of the cache make unpickling fail in any way, before the function runs.
            logger.warning("machine_code_not_kept", extra={"reason": f"{error!r}"})
            self._is_kept = False
            self._compiled = numba.njit(nogil=True)(self.plain)
            return self._compiled(*args, **kwargs)  # type: ignore[no-any-return]

    def _compile(self) -> None:
        try:
            self._compiled = numba.njit(nogil=True, cache=True)(self.plain)
        except RuntimeError:
            # There is no folder that may be written.
            self._is_kept = False
            self._compiled = numba.njit(nogil=True)(self.plain)
