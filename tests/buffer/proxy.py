"""A proxy that breaks connections, as a bad network does."""

import random
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.buffer.peers import reset


class Proxy:
    """Passes bytes on, and resets each connection after a random number of them.

    Args:
        url: where to.
        seed: of what is random.
        least, most: how many bytes a connection lives for, both directions counted.
        breaks: how many connections to break; what comes later lives.
    """

    def __init__(self, url: str, seed: int, *, least: int, most: int, breaks: int) -> None:
        host, _, port = url.rpartition("://")[2].rpartition(":")
        self._place = (host, int(port))
        self._random = random.Random(seed)  # noqa: S311
        self._bounds = (least, most)
        self._left = breaks
        self.broken = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._wake, self._waker = socket.socketpair()
        self._threads: list[threading.Thread] = []
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closing = False

    def cut(self) -> None:
        """Reset everything that stands now."""
        for pair in list(self._pairs):
            for sock in pair:
                with suppress(OSError):
                    reset(sock)
                    sock.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        while True:
            readable, _, _ = select.select([self._listener, self._wake], [], [])
            if self._wake in readable:
                return
            front, _ = self._listener.accept()
            try:
                back = socket.create_connection(self._place)
            except OSError:
                front.close()
                continue
            life = self._random.randint(*self._bounds) if self._left > 0 else 1 << 60
            self._left -= 1
            thread = threading.Thread(target=self._pass_on, args=(front, back, life))
            self._pairs.append((front, back))
            thread.start()
            self._threads.append(thread)

    def _pass_on(self, front: socket.socket, back: socket.socket, life: int) -> None:
        other = {front: back, back: front}
        open_ends = {front, back}
        with front, back:
            with suppress(OSError):
                while open_ends and life > 0:
                    for sock in select.select(list(open_ends), [], [])[0]:
                        data = sock.recv(min(65536, max(life, 1)))
                        life -= len(data)
                        if data:
                            other[sock].sendall(data)
                        else:
                            open_ends.discard(sock)
                            other[sock].shutdown(socket.SHUT_WR)
                if not open_ends:
                    return
            # What either side has not read is lost.
            self.broken += 1
            for sock in (front, back):
                with suppress(OSError):
                    reset(sock)

    def close(self) -> None:
        self._waker.send(b"x")
        self.cut()
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, self._wake, self._waker):
            sock.close()


@contextmanager
def breaking(
    url: str, seed: int, *, least: int = 50_000, most: int = 3_000_000, breaks: int = 20
) -> Iterator[Proxy]:
    proxy = Proxy(url, seed, least=least, most=most, breaks=breaks)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
