"""Large arrays of events go from where the source has them into the messages of every format."""

from typing import Any

import numpy as np
import pytest
from tests.streamer.serializing import (
    Given,
    batches_of,
    events,
    parameters_of,
    sent,
    shares_memory,
)

from lclstream.client.formats import decode
from lclstream.streamer.batching import Form
from lclstream.streamer.message import Message
from lclstream.streamer.rank import Place
from lclstream.streamer.serializers import open_serializer

SHAPE = (128, 128)
FORMATS: dict[str, dict[str, Any]] = {
    "npz": {"type": "NumpyBinarySerializer", "use_compression": False},
    "npz deflated": {"type": "NumpyBinarySerializer", "compression_threads": 1},
    "fastbinary": {"type": "FastBinarySerializer"},
    "crystfel": {"type": "CrystfelMsgpackSerializer"},
    "stream2": {
        "type": "SimplonBinarySerializer",
        "dialect": "stream2",
        "data_source_to_serialize": "frame",
        "compression": "none",
        "compression_threads": 1,
    },
}


def values_of(count: int) -> list[Given]:
    frames = np.random.default_rng(1).random((count, *SHAPE), np.float32)
    # Each lies in memory of its own, as those of a source do.
    return [{"frame": frame.copy(), "small": np.arange(9)} for frame in frames]


def messages_of(form: str, values: list[Given], *, lasting: bool) -> list[Message]:
    parameters = parameters_of(values[0], 3, **FORMATS[form])
    result = sent(parameters, events(values), lasting=lasting)
    return [message for batch in result.messages for message in batch]


@pytest.mark.parametrize("form", FORMATS)
def test_arrays_that_stay_give_the_same_messages_as_copies(form: str) -> None:
    values = values_of(5)
    values[2]["frame"] = None
    # What has another byte order, or rows apart, cannot be sent as it lies.
    values[3]["frame"] = np.asfortranarray(values[3]["frame"])
    copied, held = (messages_of(form, values, lasting=lasting) for lasting in (False, True))
    if form == "npz deflated":
        # Cut into blocks elsewhere, they are compressed a little differently.
        for one, other in zip(copied, held, strict=True):
            first, second = (decode(each.tobytes())["frame"] for each in (one, other))
            assert np.array_equal(first, second, equal_nan=True)
    else:
        assert [each.tobytes() for each in copied] == [each.tobytes() for each in held]


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "npz deflated"])
def test_arrays_that_stay_are_not_copied(form: str) -> None:
    values = values_of(3)
    copied, held = (messages_of(form, values, lasting=lasting) for lasting in (False, True))
    for messages, is_held in ((copied, False), (held, True)):
        for value in values:
            assert any(shares_memory(each, value["frame"]) for each in messages) == is_held


@pytest.mark.parametrize("lasting", [False, True])
def test_batches_that_are_used_again_hold_nothing_of_before(lasting: bool) -> None:
    values = values_of(4)
    values[3]["frame"] = None
    parameters = parameters_of(values[0], 2, **FORMATS["fastbinary"])
    serializer = open_serializer(parameters, Place(0, 1))
    made: list[Any] = []
    new_batch = serializer.new_batch

    def again(form: Form, capacity: int) -> Any:
        if not made:
            made.append(new_batch(form, capacity))
        made[0].clear()
        return made[0]

    serializer.new_batch = again  # type: ignore[method-assign]
    found = []
    for batch in batches_of(parameters, serializer, events(values), lasting=lasting):
        (message,) = serializer.messages(batch)
        found.append(decode(message.tobytes()))
    assert len(made) == 1
    for number, value in enumerate(values[:3]):
        assert np.array_equal(found[number // 2]["frame"][number % 2], np.asarray(value["frame"]))
    assert np.isnan(found[1]["frame"][1]).all()
    made[0].clear()
    assert all(row is None for row in made[0].held[0]._rows)
