"""Functions on arrays as machine code; imported only where numba is installed."""

import logging
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar, cast

import numba

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class MachineCode(Generic[Arguments, Result]):
    """A function that is compiled when it is called first, and kept on disk for the next process.

    Where no folder may be written it is compiled in each process; so it is where what lies on the
    disk cannot be read, or the disk is full. It runs without the interpreter's lock. It may call
    nothing but numpy and what `numba.njit` compiles in the same module, and must not raise.
    """

    def __init__(self, function: Callable[Arguments, Result]) -> None:
        self.plain = function
        """The function as it is written, for comparison."""
        self._compiled: Callable[Arguments, Result] | None = None
        self._is_kept = True

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Call the function."""
        compiled = self._compiled or self._compile()
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            if not self._is_kept:
                raise
            # Damaged files make unpickling fail in any way, before the function itself runs.
            logger.warning("machine_code_not_kept", extra={"reason": repr(error)})
            return self._compile(keep=False)(*args, **kwargs)

    def _compile(self, *, keep: bool = True) -> Callable[Arguments, Result]:
        self._is_kept = keep
        try:
            compiled = numba.njit(nogil=True, cache=keep)(self.plain)
        except RuntimeError:
            # There is no folder that may be written.
            self._is_kept = False
            compiled = numba.njit(nogil=True)(self.plain)
        self._compiled = cast("Callable[Arguments, Result]", compiled)
        return self._compiled
