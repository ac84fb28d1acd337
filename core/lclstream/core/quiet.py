"""A quiet beginning, for programs that start often: nothing is done that nobody will ask for.

Of a program whose modules are all imported in its first moments it takes half the time to look for
garbage, for plug-ins of pydantic among all installed packages, and for the docstrings of the
fields of models, which only documents and schemas show.
"""

import gc
import os

_has_begun = False


def begin() -> None:
    """Begin to import, in a process that does nothing else; before any model is imported."""
    global _has_begun
    _has_begun = True
    gc.disable()
    # Who wants such plug-ins sets it to another value.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def wants_field_docs() -> bool:
    """Return whether anybody may want to see what the fields of models are."""
    return not _has_begun


def end() -> None:
    """Look for garbage again, but not in what is there now; nothing without a beginning."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
