"""How a batch of events becomes a message."""

import json
from collections.abc import Iterable
from typing import Any

from lclstream.streamer.batching import Batch, Form, new_batch
from lclstream.streamer.config import Parameters
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from my_streamer_parts.config import JsonSerializerConfig


class JsonSerializer:
    """Writes lists of numbers; a missing reading is null."""

    def __init__(self, config: JsonSerializerConfig, parameters: Parameters, place: Place) -> None:
        self._config, self._rank = config, place.rank
        self.labels = parameters.labels

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch."""
        return new_batch(form, capacity)

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Return the messages of a batch: here one."""
        used = slice(batch.count)
        content: dict[str, Any] = {"rank": self._rank, "index": batch.index[used].tolist()}
        for label, array in batch.arrays.items():
            valid = batch.valid.get(label)
            content[label] = [
                self._rounded(array[row].tolist()) if valid is None or valid[row] else None
                for row in range(batch.count)
            ]
        text = json.dumps(content) + "\n"
        return (Message((memoryview(text.encode()),), events=batch.count),)

    def _rounded(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._rounded(each) for each in value]
        return float(f"{value:.{self._config.digits}g}") if isinstance(value, float) else value

    def begin(self) -> Iterable[Message]:
        """Return what goes before the first batch of all ranks: nothing."""
        return ()

    def end(self) -> Iterable[Message]:
        """Return what goes behind the last batch of all ranks: nothing."""
        return ()

    def close(self) -> None:
        """Release threads and memory; here are none."""
