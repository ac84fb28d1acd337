"""The accounting of a transfer: what every hop sent and got.

Each producer, the buffer and each consumer keeps a `Tally` of the messages that it sent or
received: how many, how many bytes, how many events, and a digest that does not depend on
the order (the sum of the 64-bit xxh3 hashes of the payloads, modulo 2**64). Messages may take
any way and arrive in any order: two hops that agree have seen the same set of messages.

A `Reporter` sends a `Report` to the transfers service every half second and obeys the
command in the `Reply`.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

import xxhash
from pydantic import Field, ValidationError

from lclstream.core.errors import (
    BackendError,
    IdentityError,
    LclstreamError,
    UnavailableError,
)
from lclstream.core.models import StrictModel
from lclstream.core.tls import Credentials

logger = logging.getLogger(__name__)

MODULUS = 1 << 64

REPORT_INTERVAL_S = 0.5
# A service that restarts is back within seconds; a final report must outlast that.
FINISH_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 10.0

ENV_TRANSFER = "LCLSTREAM_TRANSFER"
ENV_ROLE = "LCLSTREAM_ROLE"
ENV_URL = "LCLSTREAM_URL"
ENV_REPORT_URL = "LCLSTREAM_REPORT_URL"
ENV_IDENTITY = "LCLSTREAM_IDENTITY"
ENV_DELIVERY = "LCLSTREAM_DELIVERY"

Hop = Literal["producer", "buffer", "consumer"]
Payload = bytes | bytearray | memoryview
Digest = Annotated[str, Field(pattern="^([0-9a-f]{16})?$")]


def digest64(payload: Payload) -> int:
    """Return the 64-bit xxh3 hash of a message's payload."""
    return xxhash.xxh3_64_intdigest(payload)


def digest64_of_parts(parts: Iterable[Payload]) -> int:
    """Return the hash of a message that lies in several places, as if they were one."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.intdigest()


class TallyModel(StrictModel):
    """A tally as it travels."""

    messages: int = Field(default=0, ge=0)
    bytes: int = Field(default=0, ge=0)
    """Bytes of payload, without framing."""
    events: int = Field(default=0, ge=0)
    """Detector events inside the messages; 0 where a hop does not look into them."""
    digest: Digest = "0" * 16
    """Sum of the 64-bit hashes of the payloads modulo 2**64, 16 hexadecimal digits; empty if
    this hop did not compute it."""


@dataclass(slots=True)
class Tally:
    """Counts messages; not safe for several threads that add."""

    messages: int = 0
    bytes: int = 0
    events: int = 0
    digest: int | None = 0
    """None as soon as one message was counted without its digest."""

    def add(self, payload: Payload, events: int = 0) -> None:
        """Count one message."""
        self.add_counted(memoryview(payload).nbytes, digest64(payload), events)

    def add_counted(self, size_bytes: int, digest: int | None, events: int = 0) -> None:
        """Count one message whose size, and digest if anybody wants it, are known."""
        self.messages += 1
        self.bytes += size_bytes
        self.events += events
        self._add_digest(digest)

    def merge(self, other: "Tally | TallyModel") -> None:
        """Add all that another tally has counted."""
        if isinstance(other, Tally):
            digest = other.digest
        else:
            digest = int(other.digest, 16) if other.digest else None
        self.messages += other.messages
        self.bytes += other.bytes
        self.events += other.events
        self._add_digest(digest)

    def snapshot(self) -> TallyModel:
        """Return the tally as it travels."""
        return TallyModel(
            messages=self.messages,
            bytes=self.bytes,
            events=self.events,
            digest="" if self.digest is None else f"{self.digest:016x}",
        )

    def _add_digest(self, digest: int | None) -> None:
        if self.digest is None or digest is None:
            self.digest = None
        else:
            self.digest = (self.digest + digest) % MODULUS


class Addresses(StrictModel):
    """Where a buffer listens."""

    in_: list[str] = Field(alias="in")
    """URLs that producers push to."""
    out: list[str]
    """URLs that consumers pull from."""


class Report(StrictModel):
    """What one process tells about its part of a transfer; always the whole, never a difference."""

    hop: Hop
    peer: str = Field(min_length=1, max_length=200)
    """Unique name of the process, the same over its life, e.g. `rank-0@node3:4711`."""
    final: bool = False
    """Whether this is the last report: the process has ended its part."""
    ok: bool = True
    """Whether the part was done without a fault."""
    error: str = Field(default="", max_length=10_000)
    received: TallyModel | None = None
    sent: TallyModel | None = None
    addresses: Addresses | None = None
    """Of a buffer, as soon as it listens."""
    stats: dict[str, float | int | str] = Field(default_factory=dict, max_length=100)
    """Live figures: rates, fill, peers; names carry their units."""


class Reply(StrictModel):
    """What the transfers service wants from who reported."""

    command: Literal["continue", "drain", "stop"] = "continue"
    reason: str = ""


def peer_name(label: str) -> str:
    """Return a name for this process that no other process has: `<label>@<host>:<pid>`."""
    return f"{label}@{socket.gethostname()}:{os.getpid()}"


def identity_folder(setting: str) -> Path:
    """Return the identity folder of a job.

    A relative path is looked for in the current directory, then in the job's work folder.

    Raises:
        IdentityError: it is in neither.
    """
    path = Path(setting)
    places = [path, Path(os.environ["base"], "work", path)] if "base" in os.environ else [path]  # noqa: SIM112
    for place in places:
        if place.is_dir():
            return place
    raise IdentityError(f"no identity folder at {' or '.join(map(str, places))}")


class Reporter:
    """Reports regularly from a thread of its own, and once more at the end.

    Resource handling: a context manager; owns one thread and one HTTP client.

    Error handling: a regular report that fails is logged and repeated with the next one;
    `finish` raises when the final report does not get through.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        snapshot: Callable[[], Report],
        on_reply: Callable[[Reply], None] = lambda reply: None,
        interval_s: float = REPORT_INTERVAL_S,
    ) -> None:
        # Only a job of a transfer needs them, and they are slow to load.
        import httpx

        from lclstream.core.http import raise_for_error

        self._url = url
        self._snapshot = snapshot
        self._on_reply = on_reply
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._nudge = threading.Event()
        self._client = httpx.Client(
            verify=credentials.client_context(),
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,
            event_hooks={"response": [raise_for_error]},
        )
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    @classmethod
    def from_environment(
        cls,
        snapshot: Callable[[], Report],
        on_reply: Callable[[Reply], None] = lambda reply: None,
        interval_s: float = REPORT_INTERVAL_S,
    ) -> Self | None:
        """Return the reporter of a job that belongs to a transfer, None outside of one."""
        url = os.environ.get(ENV_REPORT_URL)
        if not url:
            return None
        credentials = Credentials.from_folder(
            identity_folder(os.environ.get(ENV_IDENTITY, "identity"))
        )
        return cls(url, credentials, snapshot, on_reply, interval_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def nudge(self) -> None:
        """Report soon, without waiting for the interval to pass."""
        self._nudge.set()

    def finish(self, report: Report, timeout_s: float = FINISH_TIMEOUT_S) -> Reply:
        """Send the final report and end.

        Raises:
            UnavailableError: the service did not take it in time.
            LclstreamError: the service refused it.
        """
        self._stop_thread()
        deadline = time.monotonic() + timeout_s
        pause_s = 0.1
        try:
            while True:
                try:
                    return self._post(report)
                except LclstreamError as error:
                    if not error.transient or time.monotonic() + pause_s > deadline:
                        raise
                    logger.warning("final_report_delayed", extra={"reason": str(error)})
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)
        finally:
            self._client.close()

    def _post(self, report: Report) -> Reply:
        from lclstream.core.http import translate_errors

        body = report.model_dump_json(by_alias=True, exclude_none=True)
        with translate_errors(self._url):
            answer = self._client.post(
                self._url, content=body, headers={"Content-Type": "application/json"}
            )
        try:
            return Reply.model_validate_json(answer.content)
        except ValidationError as error:
            raise BackendError(f"{self._url} did not answer with a reply: {error}") from None

    def _run(self) -> None:
        while not self._ended.is_set():
            self._nudge.clear()
            try:
                reply = self._post(self._snapshot())
            except UnavailableError as error:
                logger.warning("report_delayed", extra={"reason": str(error)})
            except LclstreamError as error:
                logger.error("report_refused", extra={"reason": str(error)})  # noqa: TRY400
            else:
                self._on_reply(reply)
            self._nudge.wait(self._interval_s)

    def _stop_thread(self) -> None:
        self._ended.set()
        self._nudge.set()
        if self._thread.is_alive():
            self._thread.join()

    def _stop(self) -> None:
        self._stop_thread()
        self._client.close()
