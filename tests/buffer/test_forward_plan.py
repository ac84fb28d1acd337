"""How many connections fill a network."""

import logging
import socket

import pytest

from lclstream.buffer.forward_plan import (
    MAX_CONNECTIONS,
    connections_for,
    round_trip_s,
    send_buffer,
    warn_if_narrow,
)

MIB = 1 << 20


@pytest.mark.parametrize(
    ("rate", "rtt_s", "window", "connections"),
    [
        (1.25e9, 0.035, 4 * MIB, 11),
        (1.25e9, 0.035, 64 * MIB, 1),
        (1.25e9, 0.0001, 4 * MIB, 1),
        (1.25e9, 0.5, 4 * MIB, MAX_CONNECTIONS),
        (0.0, 0.035, 4 * MIB, 1),
        (1.25e9, 0.035, 0, 1),
    ],
)
def test_connections_carry_the_wanted_rate(
    rate: float, rtt_s: float, window: int, connections: int
) -> None:
    assert connections_for(rate, rtt_s, window) == connections


def test_too_few_connections_are_said_with_the_cure(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert warn_if_narrow("tcp://far:1", 8, 0.035, 4 * MIB, 1.25e9)
        assert not warn_if_narrow("tcp://far:1", 11, 0.035, 4 * MIB, 1.25e9)
        assert not warn_if_narrow("tcp://near:1", 1, 0.0, 4 * MIB, 1.25e9)
    (record,) = caplog.records
    assert vars(record)["reach_mb_s"] == pytest.approx(958.7, abs=0.1)
    assert "--forward-connections" in vars(record)["cure"]


def test_the_send_buffer_is_set_only_where_that_allows_more() -> None:
    size, window = send_buffer()
    with socket.socket() as sock:
        automatic = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        if size is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= automatic
    assert window > 0


def test_the_round_trip_of_a_connection_is_known() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
    ):
        assert 0 < round_trip_s(sock) < 60
