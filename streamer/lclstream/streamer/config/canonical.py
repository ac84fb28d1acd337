"""What of a configuration decides which data there are, in one form, and its hash."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lclstream.streamer.config import Parameters

# Where the data go, and how many threads make them, changes nothing in them.
LEFT_OUT: dict[str, Any] = {
    "data_handlers": True,
    "workers": True,
    "data_serializer": {"compression_threads", "n_threads", "threads"},
}


def canonical_json(parameters: "Parameters") -> str:
    """Return the part of a configuration that decides what the messages hold.

    Two configurations with the same text give the same data. Keys are in alphabetical order,
    defaults are written out.
    """
    content = parameters.model_dump(mode="json", exclude=LEFT_OUT)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def configuration_hash(parameters: "Parameters") -> str:
    """Return the SHA-256 of `canonical_json`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(parameters).encode()).hexdigest()
