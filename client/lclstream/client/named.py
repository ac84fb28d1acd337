"""Batches of events from messages that are named arrays: NumPy archives and FastBinary.

What our streamer says besides the values has names below `lclstream/`; messages of others lack
them, and their events are the first axis that all arrays have in common.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt

from lclstream.client.batches import Array, Batch, Ragged
from lclstream.core.errors import DecodeError

Load = Callable[[], Array]

GROUP = "lclstream/"
MASKS, OFFSETS, UNITS = f"{GROUP}valid/", f"{GROUP}offsets/", f"{GROUP}units/"
INDEX = f"{GROUP}event_index"
# Behind the name of an image: [events, channels, rows, columns] before padding.
ORIGINAL_SHAPE = "_original_shape"
NUMBERS = "iu"
KINDS = "biufcSU"
_DTYPE = re.compile(r"[<>|=]?([biufc]\d{1,2}|[SU]\d{1,5})", re.ASCII)


def dtype_of(text: str) -> np.dtype[np.generic]:
    """Return the dtype that a message names.

    Raises:
        DecodeError: it is none of numbers or text.
    """
    if _DTYPE.fullmatch(text):
        with contextlib.suppress(TypeError, ValueError):
            return np.dtype(text)
    raise DecodeError(f"no dtype of numbers or text: {text!r:.40}")


def batch_of(members: Mapping[str, Load], fields: Collection[str] | None, size_bytes: int) -> Batch:
    """Return the events of a message.

    Args:
        members: name -> what reads the array; only what is asked for is read.
        fields: names, or their last parts, to decode; None for all.
        size_bytes: of the message.

    Raises:
        DecodeError: the arrays do not fit each other.
    """
    clean = {name.strip("/"): load for name, load in members.items()}
    if len(clean) < len(members) or not clean:
        raise DecodeError("the message has two arrays of one name" if clean else "an empty message")
    own = {name: load for name, load in clean.items() if name.startswith(GROUP)}
    wanted = None if fields is None else {field.strip("/") for field in fields}
    arrays = {
        name: load() for name, load in clean.items() if name not in own and _is_wanted(name, wanted)
    }
    ragged = {
        name: Ragged(arrays.pop(name), _offsets(name, own[OFFSETS + name]()))
        for name in list(arrays)
        if OFFSETS + name in own
    }
    return _checked(arrays, ragged, own, clean, size_bytes)


def _checked(
    arrays: dict[str, Array],
    ragged: Mapping[str, Ragged],
    own: Mapping[str, Load],
    every: Mapping[str, Load],
    size_bytes: int,
) -> Batch:
    for name, each in ragged.items():
        if int(each.offsets[-1]) > len(each.values):
            raise DecodeError(f"the offsets of {name!r} do not fit its {len(each.values)} values")
    count = _count(arrays, ragged, own, every)
    arrays |= {
        name: _of_events(array, count) for name, array in arrays.items() if _is_shape(name, array)
    }
    counts = {name: array.shape[0] if array.shape else None for name, array in arrays.items()}
    counts |= {name: len(each.offsets) - 1 for name, each in ragged.items()}
    if {*counts.values()} - {count}:
        raise DecodeError(f"the arrays of the message have no common event axis: {counts}")
    return Batch(
        arrays=arrays,
        ragged=ragged,
        count=count,
        indices=_numbers(own, "event_index", count),
        timestamps=_numbers(own, "timestamp", count),
        steps=_numbers(own, "step", count),
        valid={
            name.removeprefix(MASKS): _mask(name, load(), count)
            for name, load in own.items()
            if name.startswith(MASKS)
        },
        units={
            name.removeprefix(UNITS): _text(own, name.removeprefix(GROUP))
            for name in own
            if name.startswith(UNITS)
        },
        experiment=_text(own, "experiment"),
        run=_integer(own, "run"),
        rank=_integer(own, "rank"),
        sequence=_integer(own, "sequence"),
        size_bytes=size_bytes,
    )


def _is_wanted(name: str, wanted: Collection[str] | None) -> bool:
    return wanted is None or name in wanted or name.rpartition("/")[2] in wanted


def _count(
    arrays: Mapping[str, Array],
    ragged: Mapping[str, Ragged],
    own: Mapping[str, Load],
    every: Mapping[str, Load],
) -> int:
    """Return the number of events."""
    if INDEX in own:
        return len(_one_axis(INDEX, own[INDEX]()))
    if ragged:
        return len(next(iter(ragged.values())).offsets) - 1
    known = [array for name, array in arrays.items() if not _is_shape(name, array)]
    if not known:
        # None is asked for: any of them knows.
        known = [load() for name, load in every.items() if not name.endswith(ORIGINAL_SHAPE)][:1]
    if not known or not known[0].shape:
        raise DecodeError("no array of the message has an axis of events")
    return int(known[0].shape[0])


def _is_shape(name: str, array: Array) -> bool:
    """Return whether an array is one shape for all events."""
    return name.endswith(ORIGINAL_SHAPE) and array.shape == (4,) and array.dtype.kind in NUMBERS


def _of_events(array: Array, count: int) -> Array:
    """Return a shape of all events as one [channels, rows, columns] for each."""
    return np.broadcast_to(array[1:], (count, 3))


def _offsets(name: str, array: Array) -> npt.NDArray[np.uint64]:
    offsets = _one_axis(f"{OFFSETS}{name}", array)
    if not len(offsets) or offsets[0] or bool((offsets[1:] < offsets[:-1]).any()):
        raise DecodeError(f"the offsets of {name!r} must begin with 0 and never go down")
    return offsets


def _one_axis(name: str, array: Array) -> npt.NDArray[np.uint64]:
    if array.dtype.kind not in NUMBERS or array.ndim != 1:
        raise DecodeError(f"{name!r} must be a row of integers, got {array.dtype} {array.shape}")
    return array.astype(np.uint64, copy=False)


def _numbers(own: Mapping[str, Load], name: str, count: int) -> npt.NDArray[np.uint64] | None:
    load = own.get(GROUP + name)
    if load is None:
        return None
    numbers = _one_axis(GROUP + name, load())
    if len(numbers) != count:
        raise DecodeError(f"{GROUP}{name} has {len(numbers)} elements for {count} events")
    return numbers


def _mask(name: str, array: Array, count: int) -> npt.NDArray[np.uint8]:
    if array.shape != (count,) or array.dtype.kind not in "bu":
        raise DecodeError(f"{name!r} is no mask of {count} events: {array.dtype} {array.shape}")
    return array.astype(np.uint8, copy=False)


def _integer(own: Mapping[str, Load], name: str) -> int | None:
    load = own.get(GROUP + name)
    array = None if load is None else load()
    if array is None:
        return None
    if array.size != 1 or array.dtype.kind not in NUMBERS:
        raise DecodeError(f"{GROUP}{name} must be an integer, got {array.dtype} {array.shape}")
    return int(array.astype(object).item())


def _text(own: Mapping[str, Load], name: str) -> str:
    load = own.get(GROUP + name)
    array = None if load is None else load()
    if array is None or array.size != 1 or array.dtype.kind != "S":
        return ""
    text = array.item()
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
