import time

import pytest

from lclstream.core.errors import NotAuthorizedError
from lclstream.jobs import signing

SECRET = "s3cret"  # noqa: S105
VECTORS = [
    (
        b'{"jobid":"1795210993.191","jobndx":1,"state":"queued","info":"7188"}',
        "46b3ce490e08d668f2c689bd9f19d547edb9db59f6ab2f71dfbc1360a990d979",
    ),
    (
        b'{"jobid":"1795211007.038","jobndx":1,"state":"failed","info":"3"}',
        "ce0aba28fe099c34a155f209c77678a89cebc0bdbb634823056ed0332b4e165c",
    ),
    (
        b'{"jobid":"1795210993.191","jobndx":0,"state":"canceled","info":""}',
        "695959b51b75149fed8a7f9566a27f73e8ebbab220188692701a19ead30d9f57",
    ),
    (
        b'{"jobid": "1795212450.657", "jobndx": 1, "state": "active", "info": ""}',
        "502f7bfbc4e187ed8966e0f6a7cee9d7a60074ea7e315a0e2d91291bfb681649",
    ),
]


@pytest.mark.parametrize(("body", "digest"), VECTORS)
def test_signatures_are_those_of_psik(body: bytes, digest: str) -> None:
    assert signing.sign(SECRET, body) == f"sha256={digest}"
    signing.verify(SECRET, body, f"sha256={digest}")


def test_masked_secret_is_another_key() -> None:
    # psik 2.1 signed with the mask instead of the secret.
    body = b'{"jobid":"1795210936.928","jobndx":1,"state":"queued","info":5639}'
    masked = "sha256=adcf1695c3be8956df2d9bd94d50b6766da96bd3676a7b3875209f0a8a53424c"
    assert signing.sign("*" * 10, body) == masked
    with pytest.raises(NotAuthorizedError, match="does not fit"):
        signing.verify(SECRET, body, masked)


def test_missing_signature_is_refused() -> None:
    with pytest.raises(NotAuthorizedError, match=r"^x-hub-signature-256 header is missing!$"):
        signing.verify(SECRET, b"{}", None)


def test_signature_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(NotAuthorizedError):
        signing.verify(SECRET, b"{}", "sha256=ä")


def test_timed_signature_covers_time_and_delivery() -> None:
    sent = signing.headers(SECRET, "1795210993.191/2", b"{}")
    signing.verify_timed(SECRET, b"{}", sent)
    later = sent | {signing.TIMESTAMP: f"{time.time() + 1:.3f}"}
    with pytest.raises(NotAuthorizedError):
        signing.verify_timed(SECRET, b"{}", later)
    with pytest.raises(NotAuthorizedError):
        signing.verify_timed(SECRET, b"{}", sent | {signing.DELIVERY: "1/1"})


def test_old_callback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = signing.headers(SECRET, "1/1", b"{}")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * signing.MAX_AGE_S)
    with pytest.raises(NotAuthorizedError, match="too old"):
        signing.verify_timed(SECRET, b"{}", sent)


def test_without_a_secret_nothing_is_signed() -> None:
    sent = signing.headers(None, "1/1", b"{}")
    assert set(sent) == {signing.DELIVERY, signing.TIMESTAMP}
