"""Signatures of callbacks: HMAC-SHA256 over the raw bytes of the body, as psik sends it."""

import hashlib
import hmac
import time

from lclstream.core.errors import NotAuthorizedError

SIGNATURE = "x-hub-signature-256"
TIMESTAMP = "x-lclstream-timestamp"
TIMED_SIGNATURE = "x-lclstream-signature-256"
DELIVERY = "x-lclstream-delivery"

MAX_AGE_S = 300.0


def sign(secret: str, body: bytes) -> str:
    """Return the value of `x-hub-signature-256`."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def sign_timed(secret: str, timestamp: str, delivery: str, body: bytes) -> str:
    """Return the value of `x-lclstream-signature-256`, which also covers when and which."""
    return sign(secret, f"{timestamp}.{delivery}.".encode() + body)


def headers(secret: str | None, delivery: str, body: bytes) -> dict[str, str]:
    """Return the headers of one delivery attempt; without a secret it is not signed."""
    now = f"{time.time():.3f}"
    sent = {DELIVERY: delivery, TIMESTAMP: now}
    if secret is not None:
        sent[SIGNATURE] = sign(secret, body)
        sent[TIMED_SIGNATURE] = sign_timed(secret, now, delivery, body)
    return sent


def verify(secret: str, body: bytes, signature: str | None) -> None:
    """Check the signature of a received callback over the bytes that came.

    Args:
        secret: the key both sides know.
        body: the request's body, not parsed and written again.
        signature: the header `x-hub-signature-256`.

    Raises:
        NotAuthorizedError: it is missing or wrong.
    """
    if not signature:
        raise NotAuthorizedError(f"{SIGNATURE} header is missing!")
    if not hmac.compare_digest(signature.encode(), sign(secret, body).encode()):
        raise NotAuthorizedError(f"{SIGNATURE} does not fit the body")


def verify_timed(secret: str, body: bytes, received: dict[str, str]) -> None:
    """Check the signature that our services add: it also refuses a replay after `MAX_AGE_S`.

    Args:
        secret: the key both sides know.
        body: the request's body as it came.
        received: headers with lower-case names.
    """
    timestamp, delivery = received.get(TIMESTAMP, ""), received.get(DELIVERY, "")
    expected = sign_timed(secret, timestamp, delivery, body)
    if not hmac.compare_digest(received.get(TIMED_SIGNATURE, "").encode(), expected.encode()):
        raise NotAuthorizedError(f"{TIMED_SIGNATURE} does not fit the body")
    # The signature fits, so the timestamp is one that the sender wrote.
    if abs(time.time() - float(timestamp)) > MAX_AGE_S:
        raise NotAuthorizedError("the callback is too old")
