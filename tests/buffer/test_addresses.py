"""Addresses as they are written, and binding them."""

import socket

import pytest

from lclstream.buffer.addresses import Address, listen, listening_url, parse_all
from lclstream.core.errors import InvalidConfigError


@pytest.mark.parametrize(
    ("text", "host", "first", "last"),
    [
        ("tcp://127.0.0.1:0", "127.0.0.1", 0, 0),
        ("tcp://dtn.example.org:42000", "dtn.example.org", 42000, 42000),
        ("tcp://127.0.0.1:42000-42010", "127.0.0.1", 42000, 42010),
        ("tcp://[::1]:7/", "::1", 7, 7),
        ("0", "127.0.0.1", 0, 0),
        ("42000-42010", "127.0.0.1", 42000, 42010),
    ],
)
def test_forms(text: str, host: str, first: int, last: int) -> None:
    assert Address.parse(text) == Address(host=host, first_port=first, last_port=last)


def test_form_with_tls() -> None:
    address = Address.parse("tls+tcp://dtn.example.org:42000-42010")
    assert address == Address(host="dtn.example.org", first_port=42000, last_port=42010, tls=True)
    assert str(address) == "tls+tcp://dtn.example.org:42000"
    with listen(Address.parse("tls+tcp://[::1]:0")) as sock:
        port = sock.getsockname()[1]
        assert listening_url(sock, Address.parse("tls+tcp://[::1]:0")) == f"tls+tcp://[::1]:{port}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp://",
        "tls://h:1",
        "tcp://host",
        "udp://h:1",
        "tcp://h:x",
        "h:1",
        "tcp://h:1-2-3",
        "-1",
    ],
)
def test_other_forms_are_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(InvalidConfigError, match=r"^address must be tcp://HOST:PORT, .* got "):
        Address.parse(text)


@pytest.mark.parametrize("text", ["tcp://h:65536", "tcp://h:10-9", "tcp://h:0-9"])
def test_impossible_ports_are_refused(text: str) -> None:
    with pytest.raises(InvalidConfigError, match=rf"^ports must be .* got '{text}'$"):
        Address.parse(text)


def test_no_address_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match=r"^at least one address is needed: "):
        parse_all([])


def test_bound_port_is_named_in_the_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InvalidConfigError,
            match=rf"^cannot listen on tcp://127\.0\.0\.1:{port}: Address already in use$",
        ):
            listen(Address.parse(f"tcp://127.0.0.1:{port}"))


def test_range_gives_the_first_free_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        last = min(port + 20, 65535)
        address = Address.parse(f"tcp://127.0.0.1:{port}-{last}")
        with listen(address) as sock:
            assert port < sock.getsockname()[1] <= last


def test_url_that_others_can_dial() -> None:
    address = Address.parse("tcp://0.0.0.0:0")
    with listen(address) as sock:
        port = sock.getsockname()[1]
        assert listening_url(sock, address, "dtn1") == f"tcp://dtn1:{port}"
        assert listening_url(sock, address) == f"tcp://{socket.gethostname()}:{port}"
    with listen(Address.parse("tcp://[::1]:0")) as sock:
        port = sock.getsockname()[1]
        assert listening_url(sock, Address.parse("tcp://[::1]:0")) == f"tcp://[::1]:{port}"
