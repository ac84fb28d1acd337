"""How much is tested: `make soak` sets LCLSTREAM_SOAK and gets hours' worth of the same tests."""

import os

SOAK = bool(os.environ.get("LCLSTREAM_SOAK"))


def pick(quick: int, soak: int) -> int:
    """Return how many rounds or seconds it is to be now."""
    return soak if SOAK else quick
