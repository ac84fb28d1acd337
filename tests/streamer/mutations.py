"""Documents made wrong at random, in the ways in which people and programs make them wrong."""

import copy
import random
from collections.abc import Iterator
from typing import Any

WORDS = (
    "", " ", "x", "type", "None", "null", "raw.calib", "tcp://a:1", "tcp://:0", "/", "/lclstream",
    "a/b", "\x00", "\n", "é" * 40, "x" * 5000, "{{ x }}", "exp=a,run=", "1,2,", ",", "0x", "nan",
    "1e999", "-", "Psana2Timestamp", "HDF5Serializer", "NoOpPipeline", "Psana1AreaDetector",
    "ProcessingPipeline", "RenameValues", "async_on", "lclstreamer", "batch_size", "fields",
    "wire_names", "psana", "own", "float32", "str", "int8", "<u2", "zfp",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 255, 65536, 1 << 31, 1 << 63, -(1 << 63), 1 << 64, 1 << 200, 10**400, 0.5, -0.0,
    1e308, float("inf"), float("nan"), True, False,
)  # fmt: skip
# What means something in YAML.
MARKS = (
    b"{", b"[", b": ", b"- ", b"&a ", b"*a", b"!!int ", b"\t", b"'", b'"', b"|\n", b"<<: ", b"? ",
    b"#",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, [], {}, [[]], {"": None}, {None: 1}, {3: []}, [{}], {"type": None})


def mutated(document: Any, chance: random.Random) -> Any:
    """Return a copy of a document with one or a few mistakes."""
    changed = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        places = list(_places(changed))
        if not places:
            return _value(chance, 0)
        parent, key = chance.choice(places)
        _change(parent, key, places, chance)
    return changed


def mutated_text(text: str, chance: random.Random) -> bytes:
    """Return a file with bytes taken out, doubled, moved or replaced."""
    data = bytearray(text.encode())
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        start = chance.randrange(len(data) + 1)
        piece = bytes(data[start : start + chance.choice((1, 1, 3, 40))])
        action = chance.randrange(4)
        if action == 0:
            del data[start : start + len(piece)]
        elif action == 1:
            data[start:start] = piece * chance.choice((1, 2, 50))
        elif action == 2:
            data[start:start] = chance.choice(MARKS)
        else:
            data[start : start + len(piece)] = chance.randbytes(len(piece))
    return bytes(data)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) of a document."""
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield value, number
            yield from _places(each)


def _change(parent: Any, key: Any, places: list[tuple[Any, Any]], chance: random.Random) -> None:
    if not _is_there(parent, key):
        return
    action = chance.randrange(7)
    if action <= 2:
        parent[key] = _value(chance, 0)
    elif action == 3:
        del parent[key]
    elif action == 4:
        # What stands elsewhere, or the document itself in small.
        other, at = chance.choice(places)
        if _is_there(other, at):
            parent[key] = copy.deepcopy(other[at])
    elif isinstance(parent, dict):
        name = chance.choice((*WORDS, str(key)[:-1], f"{key}s", str(key).upper(), 3, None, True))
        parent[name] = parent.pop(key) if action == 5 else _value(chance, 0)
    else:
        parent.insert(key, copy.deepcopy(parent[key]))


def _is_there(parent: Any, key: Any) -> bool:
    return key in parent if isinstance(parent, dict) else key < len(parent)


def _value(chance: random.Random, depth: int) -> Any:
    kind = chance.randrange(7 if depth < 4 else 4)
    if kind == 0:
        return chance.choice(WORDS)
    if kind == 1:
        return chance.choice(NUMBERS)
    if kind == 2:
        return copy.deepcopy(chance.choice(OTHERS))
    if kind == 3:
        return chance.getrandbits(chance.choice((3, 8, 40)))
    size = chance.choice((0, 1, 2, 30))
    if kind == 4:
        return [_value(chance, depth + 1) for _ in range(size)]
    names = [chance.choice(WORDS) for _ in range(size)]
    return {name: _value(chance, depth + 1) for name in names}
