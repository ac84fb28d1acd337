"""What TCP sockets are told, and what they tell, on Linux."""

import fcntl
import socket
import struct
import termios

# Who only reads learns of a vanished host by keepalive: after a third of the time that is
# allowed, and four probes in the rest.
KEEPALIVE_PROBES = 4

# Who writes learns it because acknowledgements stay away. TCP_USER_TIMEOUT is not used for
# that: it also ends the connection to a peer that is alive and reads nothing for that time,
# which is what back-pressure is. Must outlive a gap in the wide area network, and a cut of
# 2.5 s makes a gap of almost 5 s.
DEAD_AFTER_S = 30.0
DEAD_PROBES = 3
# They come after 0.2, 0.4, 0.8, ... s, and one may get lost.
DEAD_RETRANSMISSIONS = 5
DEAD_RETRANSMISSIONS_SOON = 3
SOON_S = 10.0

# Not yet sent data beyond this stay with us, where another consumer can still get them.
NOT_SENT_BYTES = 256 * 1024

# struct tcp_info: u8 tcpi_retransmits, tcpi_probes; u32 tcpi_last_ack_recv; u64 tcpi_bytes_acked.
TCP_INFO_BYTES = 192
RETRANSMISSIONS_OFFSET = 2
PROBES_OFFSET = 3
LAST_ACK_MS_OFFSET = 56
BYTES_ACKED_OFFSET = 120


def tune(
    sock: socket.socket, *, keep_unsent: bool = False, dead_after_s: float = DEAD_AFTER_S
) -> None:
    """Prepare a connection: non-blocking, no delay, dead peers are noticed.

    Args:
        sock: a connection, or a socket that is about to connect.
        keep_unsent: keep what the network does not take yet out of the kernel.
        dead_after_s: how long the peer's host may be silent; the kernel counts whole seconds.
    """
    idle_s = max(round(dead_after_s / 3), 1)
    interval_s = max(round((dead_after_s - idle_s) / KEEPALIVE_PROBES), 1)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    if keep_unsent:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)


def unacknowledged_bytes(sock: socket.socket) -> int:
    """Return how many bytes the peer's kernel has not acknowledged; 0 after a reset."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    (count,) = struct.unpack("i", answer)
    return int(count)


def acknowledged_bytes(sock: socket.socket, sent_bytes: int, *, dialled: bool) -> int:
    """Return how many of the bytes written the peer's kernel has; valid also after a reset.

    Args:
        sock: the connection, not yet closed.
        sent_bytes: all bytes written to it, the handshake too.
        dialled: whether this side connected: then the kernel counts its SYN as well.
    """
    info = _info(sock)
    (acked,) = struct.unpack_from("=Q", info, BYTES_ACKED_OFFSET)
    # Our FIN counts as one more once it is acknowledged.
    return min(int(acked) - (1 if dialled else 0), sent_bytes)


def is_dead(sock: socket.socket, dead_after_s: float = DEAD_AFTER_S) -> bool:
    """Return whether the peer's host has stopped to answer.

    A live host acknowledges what it gets, and the probes that ask it for room.

    Args:
        sock: the connection.
        dead_after_s: how long it may be silent although it was sent something.
    """
    info = _info(sock)
    (last_ack_ms,) = struct.unpack_from("=I", info, LAST_ACK_MS_OFFSET)
    # The last acknowledgement may be old because nothing was sent since.
    many = DEAD_RETRANSMISSIONS if dead_after_s > SOON_S else DEAD_RETRANSMISSIONS_SOON
    unanswered = info[RETRANSMISSIONS_OFFSET] >= many or info[PROBES_OFFSET] >= DEAD_PROBES
    return unanswered and int(last_ack_ms) >= dead_after_s * 1000


def _info(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)


def reset_on_close(sock: socket.socket) -> None:
    """Make `close` tell the peer that this is not a proper end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
