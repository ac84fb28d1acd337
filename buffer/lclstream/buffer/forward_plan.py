"""How many connections fill a wide area network; the limits of this machine's sockets.

One TCP connection carries at most a window in each round trip, whatever the network could do.
"""

import logging
import math
import socket
import struct
from pathlib import Path

from lclstream.buffer.tcp import TCP_INFO_BYTES

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
AUTOMATIC = Path("/proc/sys/net/ipv4/tcp_wmem")
SETTABLE = Path("/proc/sys/net/core/wmem_max")
# The kernel doubles what it is asked for, to have room for its own needs.
OVERHEAD = 2
# In struct tcp_info: u32 tcpi_min_rtt, in microseconds. One of a busy host may be much longer.
MIN_RTT_OFFSET = 148


def send_buffer() -> tuple[int | None, int]:
    """Return the value for SO_SNDBUF, None to leave it alone, and the window that comes of it.

    A size that is set ends the kernel's own tuning, so it is set only where it allows more.
    """
    try:
        automatic = int(AUTOMATIC.read_text().split()[2])
        settable = int(SETTABLE.read_text())
    except (OSError, ValueError, IndexError):
        return None, 0
    if OVERHEAD * settable > automatic:
        return settable, settable
    return None, automatic


def round_trip_s(sock: socket.socket) -> float:
    """Return the shortest round trip that the kernel has measured on a connection."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    (microseconds,) = struct.unpack_from("=I", info, MIN_RTT_OFFSET)
    return float(microseconds) / 1e6


def connections_for(rate_bytes: float, rtt_s: float, window_bytes: int) -> int:
    """Return how many connections carry so many bytes in a second."""
    if not window_bytes:
        return 1
    return min(max(math.ceil(rate_bytes * rtt_s / window_bytes), 1), MAX_CONNECTIONS)


def warn_if_narrow(
    url: str, connections: int, rtt_s: float, window_bytes: int, rate_bytes: float
) -> bool:
    """Log, and return, that so many connections cannot carry the wanted rate."""
    reach = connections * window_bytes / rtt_s if rtt_s else math.inf
    if not window_bytes or reach >= rate_bytes:
        return False
    logger.warning(
        "forward_narrow",
        extra={
            "url": url,
            "connections": connections,
            "round_trip_ms": round(rtt_s * 1e3, 3),
            "window_bytes": window_bytes,
            "reach_mb_s": round(reach / 1e6, 1),
            "wanted_mb_s": round(rate_bytes / 1e6, 1),
            "cure": "more --forward-connections, or a larger net.ipv4.tcp_wmem",
        },
    )
    return True
