"""A quiet beginning: nothing is searched for that is not there, while everything is imported.

That is garbage, and plug-ins of pydantic among all installed packages: a quarter of the time.
"""

import gc
import os


def begin() -> None:
    """Begin to import, in a process that does nothing else."""
    gc.disable()
    # Who wants such plug-ins sets it to another value.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def end() -> None:
    """Search for garbage again, but not in what is there now; nothing without a beginning."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
