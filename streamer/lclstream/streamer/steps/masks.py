"""Which pixels are good: from a file for all events, or from a value of each event."""

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config.masks import MaskConfig
from lclstream.streamer.config.steps import ValueStep
from lclstream.streamer.steps.mapping import Numbers, array_of, misfit
from lclstream.streamer.values import Values

Bools: TypeAlias = npt.NDArray[np.bool_]


class Mask:
    """Says which pixels of a frame are good."""

    def __init__(self, config: MaskConfig, step: ValueStep) -> None:
        """Read the file, if there is one.

        Raises:
            InvalidConfigError: it cannot be read.
        """
        self._config, self._step = config, step
        self.fixed: Bools | None = None
        """The mask of all events; None when each has its own."""
        if config.file:
            where = f"{step.type}: the mask"
            self.fixed = self._good(read_array(Path(config.file), config.dataset, where))

    def of(self, label: str, frame: Numbers, values: Values) -> Bools | None:
        """Return where the pixels of a frame are good, in its shape; None if it is not known.

        Raises:
            InvalidConfigError: the mask has another shape.
        """
        good = self.fixed
        if good is None:
            value = values.get(self._config.value)
            if value is None:
                return None
            good = self._good(array_of(self._step, self._config.value, value))
        if good.shape != frame.shape:
            text = f"has shape {frame.shape}, but its mask has {good.shape}"
            raise misfit(self._step, label, text)
        return good

    def _good(self, words: Numbers) -> Bools:
        if self._config.bits:
            if words.dtype.kind not in "iu":
                raise InvalidConfigError(f"{self._step.type}: the mask is {words.dtype}, no bits")
            # Bits that the dtype does not have are never set.
            held = self._config.bits & ((1 << (8 * words.dtype.itemsize)) - 1)
            bits = np.array(held, np.uint64).astype(words.dtype)
            words = np.bitwise_and(words, bits)
        good = words if words.dtype == np.bool_ else words != 0
        return ~good if self._config.good == "zero" else good


def mask_of(config: MaskConfig | None, step: ValueStep) -> Mask | None:
    """Return the mask of a step, None when it has none.

    Raises:
        InvalidConfigError: its file cannot be read.
    """
    return None if config is None else Mask(config, step)


def read_array(path: Path, dataset: str, where: str) -> Numbers:
    """Return an array from a NumPy or HDF5 file.

    Args:
        path: .npy; anything else that NumPy cannot read is taken for HDF5.
        dataset: name of the array in an .npz file, or its path in an HDF5 file.
        where: what it is needed for, for messages.

    Raises:
        InvalidConfigError: the file or array does not exist, or is not what it should be.
    """
    try:
        found = np.load(path, allow_pickle=False) if _is_numpy(path) else None
        if found is None:
            return _from_hdf5(path, dataset)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return np.asarray(found[dataset])
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        reason = f"it has no {dataset!r}" if isinstance(error, KeyError) else str(error)
        raise InvalidConfigError(f"{where} cannot be read from {path}: {reason}") from None


def _is_numpy(path: Path) -> bool:
    return path.suffix in (".npy", ".npz")


def _from_hdf5(path: Path, dataset: str) -> Numbers:
    import h5py

    with h5py.File(path) as file:
        found = file[dataset]
        if not isinstance(found, h5py.Dataset):
            raise TypeError(f"{dataset!r} is a group")
        return np.asarray(found[...])
