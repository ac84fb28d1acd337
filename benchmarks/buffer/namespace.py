"""A network namespace of our own with a stated congestion control, and what else must be stated.

A congestion control that paces (bbr) limits loopback, so a benchmark that does not state it
says nothing.
"""

import ctypes
import fcntl
import os
import platform
import socket
import struct
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def enter(congestion_control: str) -> bool:
    """Move this process into a namespace of its own; return whether that was allowed.

    An ordinary user gets a user namespace with it, where the kernel has them.
    """
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        return False
    _loopback_up()
    try:
        CONGESTION_CONTROL.write_text(congestion_control)
    except OSError:
        return False
    return True


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def conditions(*, is_own: bool) -> dict[str, str]:
    """Return what a figure means nothing without."""
    return {
        "congestion control": CONGESTION_CONTROL.read_text().strip(),
        "network namespace": "own" if is_own else "of the host",
        "kernel": platform.release(),
        "processors": str(len(os.sched_getaffinity(0))),
        "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{f"{name} version": _version(name) for name in ("pynng", "pyzmq", "lclstream")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
