"""Relays made of library sockets, each as its library's users would write it.

Run as a module: KIND, the URL that producers connect to, the URL that consumers connect to.
"""

import sys

# A message count, since libraries know no other bound.
QUEUED_MESSAGES = 100


def zmq_proxy(url_in: str, url_out: str) -> None:
    """Run libzmq's own proxy."""
    import zmq

    with zmq.Context() as context:
        source, sink = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        for sock, url in ((source, url_in), (sink, url_out)):
            sock.set_hwm(QUEUED_MESSAGES)
            sock.bind(url)
        zmq.proxy(source, sink)


def pyzmq_loop(url_in: str, url_out: str) -> None:
    """Receive and send without copying."""
    import zmq

    with zmq.Context() as context:
        source, sink = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        for sock, url in ((source, url_in), (sink, url_out)):
            sock.set_hwm(QUEUED_MESSAGES)
            sock.bind(url)
        while True:
            sink.send(source.recv(copy=False), copy=False)


def nng_device(url_in: str, url_out: str) -> None:
    """Run NNG's own device on raw sockets."""
    import pynng

    with (
        pynng.Pull0(opener=pynng.lib.nng_pull0_open_raw) as source,
        pynng.Push0(opener=pynng.lib.nng_push0_open_raw) as sink,
    ):
        sink.send_buffer_size = QUEUED_MESSAGES
        source.listen(url_in)
        sink.listen(url_out)
        pynng.lib.nng_device(source.socket, sink.socket)


def pynng_loop(url_in: str, url_out: str) -> None:
    """Receive and send messages that are never copied into Python."""
    import pynng

    with pynng.Pull0(listen=url_in) as source, pynng.Push0(listen=url_out) as sink:
        sink.send_buffer_size = QUEUED_MESSAGES
        while True:
            sink.send_msg(source.recv_msg())


KINDS = {
    "zmq.proxy": zmq_proxy,
    "pyzmq loop": pyzmq_loop,
    "nng_device": nng_device,
    "pynng loop": pynng_loop,
}

if __name__ == "__main__":
    kind, *urls = sys.argv[1:]
    KINDS[kind](*urls)
