"""The compression libraries that come with Python packages, called as they are.

Their Python interfaces make a new object of every result and some keep all other threads
waiting; the libraries themselves write where they are told, while others work.
"""

import ctypes
import functools
import importlib.util
from pathlib import Path

SIZE, ADDRESS = ctypes.c_size_t, ctypes.c_void_p


def require_filter(code: int) -> None:
    """Make a filter known to the HDF5 library, which adds to the filter's parameters.

    Raises:
        ImportError: hdf5plugin is not installed.
        OSError: it has no such filter.
    """
    import h5py
    import hdf5plugin  # noqa: F401 - it registers its filters

    # Of a filter that it does not know the library would say nothing.
    if not h5py.h5z.filter_avail(code):
        raise OSError(f"hdf5plugin has no filter {code}")


@functools.cache
def plugin(name: str) -> ctypes.CDLL:
    """Return the library of one of hdf5plugin's filters.

    Raises:
        ImportError: hdf5plugin is not installed.
        OSError: it has no such filter.
    """
    import hdf5plugin

    config = hdf5plugin.get_config()
    path = config.registered_filters.get(name)
    if path is None or not Path(path).exists():
        raise OSError(f"hdf5plugin has no filter {name!r}")
    return ctypes.CDLL(path)


@functools.cache
def extension(module: str) -> ctypes.CDLL:
    """Return a compiled module as a library.

    Raises:
        ImportError: it is not installed.
        OSError: it is not a library.
    """
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ImportError(f"{module} is not installed")
    return ctypes.CDLL(found.origin)


def one_thread_each() -> None:
    """Keep OpenMP from starting threads of its own below the calling one.

    bitshuffle's package is built with it; we have our own threads.
    """
    try:
        set_threads = extension("bitshuffle.ext").omp_set_num_threads
    except (ImportError, OSError, AttributeError):
        return
    set_threads(1)
