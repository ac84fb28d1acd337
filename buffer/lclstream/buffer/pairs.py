"""Two ends of one TCP connection in this machine."""

import socket

# Nobody but the other end has to connect meanwhile.
ACCEPT_TIMEOUT_S = 5.0
TCP_CONGESTION = 13


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Return the accepted and the dialled end of a connection over the loopback device.

    It is TCP, so what holds for other connections holds for it too: what the other kernel has
    can be asked, and what it does not take can be kept back.

    Raises:
        OSError: there is no loopback device, or somebody else was faster again and again.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        _do_not_throttle(listener)
        dialled = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            _do_not_throttle(dialled)
            dialled.settimeout(ACCEPT_TIMEOUT_S)
            listener.settimeout(ACCEPT_TIMEOUT_S)
            dialled.connect(listener.getsockname())
            while True:
                accepted, place = listener.accept()
                if place == dialled.getsockname():
                    return accepted, dialled
                # Another user of the machine tries ports.
                accepted.close()
        except BaseException:
            dialled.close()
            raise


def _do_not_throttle(sock: socket.socket) -> None:
    """Use the plainest congestion control: some others measure, and slow down, a loopback."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, b"reno")
