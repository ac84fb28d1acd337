"""The ends of a stream in pure Python: `Push` for producers, `Pull` for consumers.

They speak the SP protocol over TCP, so either may be replaced by an NNG program.
"""

from lclstream.buffer.outgoing import Payload
from lclstream.buffer.pull import Pull, ReceiveTimeoutError
from lclstream.buffer.push import Push

__all__ = ["Payload", "Pull", "Push", "ReceiveTimeoutError"]
