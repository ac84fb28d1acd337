"""A calibration service on this machine, with the constants that a test gives it."""

import json
import pickle
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

LONG, SHORT = "long", "short"


class CalibrationService:
    """What the service knows, and what it was asked.

    Documents are added to databases; `overrides` are answers to paths instead of the usual ones.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[dict[str, str]]] = {}
        self.documents: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.data: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.overrides: dict[str, tuple[int, bytes]] = {}
        self.url = ""

    def add_detector(self, unique: str, short: str) -> None:
        """Let a detector be known."""
        kind = unique.partition("_")[0]
        self.names.setdefault(kind, []).append({LONG: unique, SHORT: short})

    def add(
        self, database: str, short: str, ctype: str, value: Any, run: int = 1, end: Any = "end"
    ) -> dict[str, Any]:
        """Add constants to a database, and return their document."""
        number = len(self.data) + 1
        identity = f"{0x68000000 + number:08x}{number:016x}"
        array = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else None
        kind = "ndarray" if array is not None else "str" if isinstance(value, str) else "any"
        raw = pickle.dumps(value) if kind == "any" else str(value).encode()
        self.data[identity] = raw if array is None else array.tobytes()
        document = {
            "_id": identity, "id_data": identity, "ctype": ctype, "run": run, "run_end": end,
            "experiment": "tst000124", "detector": short, "shortname": short,
            "data_type": kind,
            "data_dtype": kind if array is None else str(array.dtype),
            "data_shape": "None" if array is None else str(array.shape),
            "time_stamp": "2026-01-01T00:00:00-0800", "version": "V1", "uid": "test",
        }  # fmt: skip
        self.documents.setdefault((f"cdb_{database}", short), []).append(document)
        return document

    def answer(self, target: str) -> tuple[int, bytes]:
        """Return status and body of the answer to a request."""
        parts = urlsplit(target)
        path = parts.path.partition("/calib_ws/")[2]
        self.asked.append(path)
        if path in self.overrides:
            return self.overrides[path]
        query = json.loads(parse_qs(parts.query).get("query_string", ["{}"])[0])
        database, _, rest = path.partition("/")
        if database == "cdb_detnames":
            known = self.names.get(rest, [])
            found: Any = [each for each in known if query.get(LONG) in (None, each[LONG])]
        elif rest.startswith("gridfs/"):
            data = self.data.get(rest.partition("/")[2])
            return (404, b"") if data is None else (200, data)
        else:
            limit = query.get("run", {}).get("$lte", 9999)
            documents = self.documents.get((database, rest), [])
            found = [each for each in documents if each["run"] <= limit]
        return 200, json.dumps(found).encode()


@contextmanager
def calibration_service() -> Iterator[CalibrationService]:
    """Yield a service that listens on 127.0.0.1; `url` is its address."""
    service = CalibrationService()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = service.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="calibration-service")
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def constants_at(
    service: CalibrationService, unique: str, short: str, found: Mapping[str, Any]
) -> None:
    """Let a service have the constants of a detector, valid for all runs of the tests."""
    service.add_detector(unique, short)
    for ctype, value in found.items():
        service.add("tst000124", short, ctype, value)
