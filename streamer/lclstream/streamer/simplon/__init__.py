"""Messages of DECTRIS detectors' Stream V2, and of lclstreamer's dialect that is named after it.

For a reader: `decode` returns a `StartMessage`, `ImageMessage` or `EndMessage`; an image's
channels are `PackedArray`, which `unpack` turns into arrays.

For a writer: `encode` takes the same three and returns pieces for the socket. An image becomes
ready by `PackedArray.pack(array, "bslz4")`, times by `DateTime.of_ns(ns)` and
`Rational(numerator, denominator)`:

```
encode(StartMessage(series_id=7, series_unique_id="r7", fields={"channels": ["default"], ...}))
encode(ImageMessage(series_id=7, image_id=0, data={"default": PackedArray.pack(image, "bslz4")},
                    user_data={"timestamp": 4776162079372773723}))
encode(EndMessage(series_id=7, series_unique_id="r7"))
```

`simplon.lclstreamer` holds the other dialect. `docs/reference/simplon.md` describes both.
"""

from lclstream.streamer.simplon.arrays import PackedArray
from lclstream.streamer.simplon.cbor import Tagged
from lclstream.streamer.simplon.messages import (
    EndMessage,
    ImageMessage,
    Message,
    Rational,
    StartMessage,
    decode,
    encode,
)
from lclstream.streamer.simplon.values import DateTime

__all__ = [
    "DateTime",
    "EndMessage",
    "ImageMessage",
    "Message",
    "PackedArray",
    "Rational",
    "StartMessage",
    "Tagged",
    "decode",
    "encode",
]
