"""CBOR messages in the manner of DECTRIS Simplon: a start, one image for each event, an end.

`stream2` is DECTRIS' own Stream V2, which its clients and dxtbx read; `lclstreamer` is what
LCLStreamer calls SIMPLON, and no client of DECTRIS reads; `lclstreamer-pr51` is its successor.
"""

import importlib.util
import logging
import os
from collections.abc import Iterable

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.batching import Batch, Form
from lclstream.streamer.config import Parameters, SimplonBinarySerializerConfig
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers.codecs.libraries import one_thread_each
from lclstream.streamer.serializers.contents import BatchSerializer
from lclstream.streamer.serializers.held import held_batch
from lclstream.streamer.serializers.pieces import merged
from lclstream.streamer.serializers.simplon_facts import Row
from lclstream.streamer.serializers.simplon_run import RunStream
from lclstream.streamer.serializers.simplon_stream2 import Stream2
from lclstream.streamer.serializers.workers import OrderedWorkers

logger = logging.getLogger(__name__)

OPENMP_THREADS = "OMP_NUM_THREADS"


class SimplonBinarySerializer(BatchSerializer):
    """Makes one message of each event, all of a batch at a time where there are threads.

    What the start says of the events, it learns from the first one of its own rank: so `begin`
    is to be called when the first batch is full, or when there is none.
    """

    def __init__(
        self, config: SimplonBinarySerializerConfig, parameters: Parameters, place: Place
    ) -> None:
        """Prepare.

        Raises:
            InvalidConfigError: the library that compresses is not installed.
        """
        super().__init__(parameters.labels)
        compresses = config.dialect != "stream2" or config.compression == "bslz4"
        if compresses and importlib.util.find_spec("bitshuffle") is None:
            raise InvalidConfigError("SimplonBinarySerializer needs bitshuffle: not installed")
        kind = Stream2 if config.dialect == "stream2" else RunStream
        self._stream: Stream2 | RunStream = kind(config, parameters, place)
        self._workers = OrderedWorkers(config.compression_threads)
        self._first: Batch | None = None
        self._has_begun = False
        limit_openmp()

    def new_batch(self, form: Form, capacity: int) -> Batch:
        """Return an empty batch.

        Raises:
            InvalidConfigError: no images can be made of its frames.
        """
        self._stream.check(form)
        batch = held_batch(form, capacity)
        if not self._has_begun:
            self._first = self._first or batch
        return batch

    def begin(self) -> Iterable[Message]:
        """Return the start."""
        first = self._first
        row = Row(first, 0) if first is not None and first.count else None
        return (Message(merged(self._stream.start(row)), 0),)

    def messages(self, batch: Batch) -> Iterable[Message]:
        """Return a message for each event; they are valid until the batch is used again."""
        # It is not needed any more, and must not be kept from who reads.
        self._first, self._has_begun = None, True
        # The library may have been loaded before its variable was set.
        one_thread_each()

        def message(number: int) -> Message:
            parts = self._stream.image(Row(batch, number), batch.sequence + number)
            return Message(merged(parts), 1)

        return self._workers.map(message, range(batch.count))

    def end(self) -> Iterable[Message]:
        """Return the end."""
        return (Message(merged(self._stream.end()), 0),)

    def close(self) -> None:
        """End the threads that compress."""
        self._workers.close()


def limit_openmp() -> None:
    """Keep the library that compresses from starting threads of its own in this process.

    Those of several ranks on few cores hinder each other by a factor of a hundred. The library
    reads the variable when it is loaded; one that is set stays for others.
    """
    if OPENMP_THREADS not in os.environ:
        os.environ[OPENMP_THREADS] = "1"
        logger.info("openmp_threads_limited", extra={"variable": OPENMP_THREADS, "value": 1})
