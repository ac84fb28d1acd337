"""Messages as the streamer sends them, and a place that reports can be sent to."""

import io
import threading
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from lclstream.buffer.endpoints import Push


def frames(first: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = [np.random.default_rng(i).poisson(2.0, (2, 4, 8)) for i in range(first, first + count)]
    return np.array(values, np.float32)


def message(first: int = 0, count: int = 3, **filters: Any) -> bytes:
    """Return a message of events from `first` on, with the identification of our streamer."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        data = frames(first, count)
        file.create_dataset("data/data", data=data, chunks=(1, *data.shape[1:]), **filters)
        file["data/timestamp"] = np.arange(first, first + count, dtype=np.uint64)
        file["lclstream/event_index"] = np.arange(first, first + count, dtype=np.uint64)
        file["lclstream/timestamp"] = np.arange(first, first + count, dtype=np.uint64) + (1 << 40)
        file["lclstream/sequence"] = np.uint64(first // count)
        file["lclstream/valid/data"] = (np.arange(first, first + count) % 2).astype(np.uint8)
        file["lclstream"].attrs.update({"experiment": "mfx1", "run": np.uint64(42), "rank": 1})
    return memory.getvalue()


class Producer:
    """Pushes messages from a thread of its own, as another process would."""

    def __init__(self, payloads: Sequence[bytes], url: str = "", *, end: bool = True) -> None:
        self._push = Push(url or "tcp://127.0.0.1:0", listen=not url, send_timeout_s=10)
        self.url = self._push.urls[0]
        self._payloads = payloads
        self._release = threading.Event()
        if end:
            self._release.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: Exception | None = None

    def __enter__(self) -> "Producer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def end(self) -> None:
        """Let the producer close its end of the stream."""
        self._release.set()

    def _run(self) -> None:
        try:
            for payload in self._payloads:
                self._push.send(payload)
            self._push.flush()
            assert self._release.wait(30)
            # A reader that left before everything was on its way never comes back.
            self._push.close(timeout_s=10)
        except Exception as error:
            self.error = error
            self._push.abort()
