"""Is psana there, and which of the two? Nothing of it is imported to find out."""

from importlib.util import find_spec
from pathlib import Path

from lclstream.core.errors import InvalidConfigError

# A package that only psana2 has.
_OF_PSANA2 = "psexp"


def installed_generation() -> int:
    """Return 1 or 2, and 0 where no psana is installed; both have the same name."""
    spec = find_spec("psana")
    if spec is None:
        return 0
    folders = spec.submodule_search_locations or ()
    return 2 if any((Path(folder) / _OF_PSANA2).is_dir() for folder in folders) else 1


def require(generation: int, kind: str) -> None:
    """Refuse where this psana is not installed.

    Args:
        generation: 1 for LCLS-I, 2 for LCLS-II.
        kind: name of the event source, for the message.

    Raises:
        InvalidConfigError: it is not.
    """
    found = installed_generation()
    if found == generation:
        return
    own = " XTC2 files can be read without psana: Xtc2EventSource." if generation == 2 else ""
    there = f", but psana{found}; they exclude each other" if found else ""
    raise InvalidConfigError(
        f"{kind} needs psana{generation}, which is not installed in this environment{there}.{own}"
    )
