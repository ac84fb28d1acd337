"""Constants from the facility's calibration service.

All requests are GET below `<address>/calib_ws/` and need no key:

1. `cdb_detnames/<kind>?query_string={"long": "<kind>_<serial>..."}` tells the short name of a
   detector, such as `jungfrau_000001`.
2. `cdb_<experiment>/<short>?query_string={"detector": "<short>", "run": {"$lte": N}}` lists the
   constants: which there are, for which runs, their dtype and shape.
3. `cdb_<experiment>/gridfs/<id>` has the bytes of one.
4. `cdb_<short>/<short>?...` lists what is valid unless an experiment has constants of its own.

Nothing that the service sends is executed: a shape is parsed, and pickled objects are refused. What
it sent is kept in a folder under its id, so that the next rank and the next run need not ask.
"""

import fcntl
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np

from lclstream.core.errors import DecodeError, InvalidConfigError, UnavailableError
from lclstream.core.http import translate_errors
from lclstream.streamer.calibration.constants import (
    ARRAYS,
    GEOMETRY,
    NAMES,
    Array,
    Constants,
    Detector,
)

logger = logging.getLogger(__name__)

LAST_RUN = 9999
MAX_LISTING_BYTES = 64 << 20
MAX_CONSTANTS_BYTES = 4 << 30
"""A 16-megapixel Jungfrau's status of 64 bits takes 400 MB."""
BYTES_PER_TIMEOUT = 100_000_000
_SHAPE = re.compile(r"\((\s*\d{1,12}\s*(?:,\s*\d{1,12}\s*)*),?\s*\)|\d{1,12}", re.ASCII)
_DTYPE = re.compile(r"[<>=|]?(bool|u?int(8|16|32|64)|float(16|32|64)|[iu][1248]|f[248])")
_RUN = re.compile(r"[0-9]{1,9}")
_ID = re.compile(r"[0-9a-f]{24}")
_SHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

Document = Mapping[str, Any]


class ServiceStore:
    """Asks a calibration service, and keeps what it sent.

    Error handling: `UnavailableError` when it does not answer in time, `DecodeError` when what it
    sends cannot be.

    Args:
        address: such as `https://pswww.slac.stanford.edu/ws`.
        cache: folder for what was sent; made when it is not there.
        timeout_s: how long an answer may take; data may take as much again per 100 MB.
    """

    def __init__(self, address: str, cache: Path, timeout_s: float) -> None:
        self._address = address.rstrip("/")
        self._cache, self._timeout_s = cache, timeout_s

    def constants(self, detector: Detector, experiment: str, run: int) -> Constants:
        """Return the constants of a detector that are valid for a run.

        Raises:
            InvalidConfigError: the service has none.
            UnavailableError: it does not answer.
            DecodeError: what it sends cannot be.
        """
        with httpx.Client(timeout=self._timeout_s) as client:
            short = self._short_name(client, detector)
            chosen = self._documents(client, short, experiment, run)
            if not chosen:
                raise InvalidConfigError(
                    f"{self._address} has no constants of {detector.name!r} ({short}) for run {run}"
                )
            found = {
                name: self._data(client, database, name, document)
                for name, (database, document) in chosen.items()
            }
        arrays = {name: cast("Array", found[name]) for name in ARRAYS if name in found}
        versions = {name: f"run {each.get('run')}" for name, (_, each) in chosen.items()}
        extra = {"detector": detector.name, "run": run, "constants": versions}
        logger.info("calibration_constants", extra=extra)
        return Constants(
            arrays=arrays,
            geometry=str(found.get(GEOMETRY, "")),
            origin=f"{self._address}, {short}, run {run}",
        )

    def _short_name(self, client: httpx.Client, detector: Detector) -> str:
        if not _SHORT.fullmatch(detector.kind):
            raise InvalidConfigError(f"no kind of detector can be called {detector.kind!r}")
        listed = self._listing(client, f"cdb_detnames/{detector.kind}", {"long": detector.unique})
        if not listed:
            # Panels may have been added to a detector since: then its name has ours in it.
            everything = self._listing(client, f"cdb_detnames/{detector.kind}", {})
            listed = [each for each in everything if _has_all(str(each.get("long", "")), detector)]
        names = [each.get("short") for each in listed]
        short = names[0] if names else None
        if not isinstance(short, str) or not _SHORT.fullmatch(short):
            raise InvalidConfigError(
                f"{self._address} does not know the detector {detector.name!r} ({detector.unique})"
            )
        return short

    def _documents(
        self, client: httpx.Client, short: str, experiment: str, run: int
    ) -> dict[str, tuple[str, Document]]:
        """Return name of constants -> database and document."""
        chosen: dict[str, tuple[str, Document]] = {}
        if _SHORT.fullmatch(experiment):
            # As at the facility: a run without number takes the newest.
            query = {"detector": short, "run": {"$lte": run or LAST_RUN}}
            database = f"cdb_{experiment}"
            listed = self._listing(client, f"{database}/{short}", query)
            for name in NAMES:
                document = valid_for(_of_name(listed, name), run)
                if document is not None:
                    chosen[name] = database, document
        if len(chosen) < len(NAMES):
            database = f"cdb_{short}"
            query = {"detector": short, "run": {"$lte": LAST_RUN}}
            listed = self._listing(client, f"{database}/{short}", query)
            for name in NAMES:
                documents = _of_name(listed, name)
                if documents and name not in chosen:
                    chosen[name] = database, max(documents, key=_made_at)
        return {
            name: each for name, each in chosen.items() if _is_readable(name, *each, self._address)
        }

    def _listing(self, client: httpx.Client, path: str, query: Any) -> list[Document]:
        url = f"{self._address}/calib_ws/{path}"
        parameters = {"query_string": json.dumps(query)}
        content = bytearray()
        for piece in self._answer(client, url, parameters, self._timeout_s):
            content += piece
            if len(content) > MAX_LISTING_BYTES:
                raise DecodeError(f"{url}: the list is longer than {MAX_LISTING_BYTES} bytes")
        try:
            listed = json.loads(content)
        except ValueError as error:
            raise DecodeError(f"{url}: no JSON: {error}") from None
        if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise DecodeError(f"{url}: expected a list of documents")
        return listed

    def _data(
        self, client: httpx.Client, database: str, name: str, document: Document
    ) -> Array | str:
        """Return constants, from the folder where they are there already."""
        identity = str(document.get("id_data"))
        if not _ID.fullmatch(identity):
            raise DecodeError(f"{database}, {name}: id_data is {identity!r}")
        url = f"{self._address}/calib_ws/{database}/gridfs/{identity}"
        if name == GEOMETRY:
            path, size = self._cache / f"{identity}.txt", None
        else:
            dtype, shape = array_type(document, f"{database}, {name}")
            path = self._cache / f"{identity}.npy"
            size = math.prod(shape) * dtype.itemsize
        with self._locked(identity):
            if not path.is_file():
                content = self._bytes(client, url, size)
                if size is None:
                    _keep(path, content)
                else:
                    _keep(path, np.ndarray(shape, dtype, content))
        return path.read_text() if size is None else self._kept(path, dtype, shape)

    def _bytes(self, client: httpx.Client, url: str, size: int | None) -> bytearray:
        limit = MAX_LISTING_BYTES if size is None else size
        content = bytearray(size or 0)
        at = 0
        allowed_s = self._timeout_s * (1 + limit / BYTES_PER_TIMEOUT)
        for piece in self._answer(client, url, {}, allowed_s):
            if at + len(piece) > limit:
                raise DecodeError(f"{url}: more than {limit} bytes")
            content[at : at + len(piece)] = piece
            at += len(piece)
        if size is not None and at != size:
            raise DecodeError(f"{url}: {at} bytes, expected {size}")
        return content

    def _answer(
        self, client: httpx.Client, url: str, parameters: Mapping[str, str], allowed_s: float
    ) -> Iterator[bytes]:
        """Yield the body of an answer, within a limit of time for all of it."""
        deadline = time.monotonic() + allowed_s
        with translate_errors(url), client.stream("GET", url, params=parameters) as response:
            if response.status_code != httpx.codes.OK:
                raise UnavailableError(f"{url} answers HTTP {response.status_code}")
            for piece in response.iter_bytes():
                if time.monotonic() > deadline:
                    raise UnavailableError(f"{url} takes longer than {allowed_s:.0f} s")
                yield piece

    @contextmanager
    def _locked(self, identity: str) -> Iterator[None]:
        """Let only one process fetch the same constants."""
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            file = (self._cache / f"{identity}.lock").open("w")
        except OSError as error:
            raise InvalidConfigError(
                f"calibration.cache: cannot write to {self._cache}: {error.strerror}"
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _kept(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DecodeError(f"{path}: {error}; remove it") from error
        if (array.dtype, array.shape) != (dtype, shape):
            raise DecodeError(
                f"{path}: {array.dtype} {array.shape}, expected {dtype} {shape}; remove it"
            )
        return cast("Array", array)


def default_cache() -> Path:
    """Return the folder for constants when the configuration names none."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lclstream" / "calibration"


def valid_for(documents: list[Document], run: int) -> Document | None:
    """Return the document whose constants count for a run, if there is one.

    Of those that are valid the one counts that begins last, of these the one for fewer runs, and
    of these the newest.
    """
    fitting = [
        (first, -last, _made_at(each), place)
        for place, each in enumerate(documents)
        for first, last in [_runs(each)]
        if first <= run <= last
    ]
    return documents[max(fitting)[3]] if fitting else None


def array_type(document: Document, where: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape of an array, as a document says them.

    Raises:
        DecodeError: it is no array of numbers, or impossibly large.
    """
    kind, name, text = (document.get(f"data_{each}") for each in ("type", "dtype", "shape"))
    match = _SHAPE.fullmatch(str(text).strip())
    # Numpy would parse, and partly evaluate, whatever stands there.
    if kind != "ndarray" or match is None or not _DTYPE.fullmatch(str(name)):
        raise DecodeError(
            f"{where}: expected an array of numbers, got {kind!r} {name!r} of shape {text!r}"
        )
    dtype, shape = np.dtype(str(name)), tuple(map(int, (match[1] or match[0]).split(",")))
    if math.prod(shape) * dtype.itemsize > MAX_CONSTANTS_BYTES:
        raise DecodeError(f"{where}: {dtype} {shape} is too large")
    return dtype, shape


def _of_name(documents: list[Document], name: str) -> list[Document]:
    return [each for each in documents if each.get("ctype") == name]


def _is_readable(name: str, database: str, document: Document, address: str) -> bool:
    """Return whether constants are what their name says; others are passed over, with a warning.

    Pickled objects are among them: reading one would execute it.
    """
    kind, wanted = document.get("data_type"), "str" if name == GEOMETRY else "ndarray"
    if kind != wanted:
        extra = {"constants": name, "database": database, "type": str(kind), "service": address}
        logger.warning("calibration_constants_passed_over", extra=extra)
    return bool(kind == wanted)


def _runs(document: Document) -> tuple[int, int]:
    """Return the first and last run of a document; a range without runs if it is not valid."""
    first, last = str(document.get("run")), str(document.get("run_end"))
    if not _RUN.fullmatch(first) or not (last == "end" or _RUN.fullmatch(last)):
        return 1, 0
    end = LAST_RUN if last == "end" else int(last)
    return (int(first), end) if max(int(first), end) <= LAST_RUN else (1, 0)


def _made_at(document: Document) -> int:
    """Return when a document was made, in seconds: its id begins with that."""
    identity = str(document.get("_id"))
    return int(identity[:8], 16) if _ID.fullmatch(identity) else 0


def _has_all(long_name: str, detector: Detector) -> bool:
    return bool(long_name) and all(serial in long_name for serial in detector.serials.values())


def _keep(path: Path, content: bytearray | Array) -> None:
    """Write a file beside its place and rename it there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, np.ndarray):
                np.save(file, content, allow_pickle=False)
            else:
                file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
