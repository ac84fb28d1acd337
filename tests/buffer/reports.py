"""A stand-in for the transfers service: takes reports over mutual TLS and gives commands."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lclstream.core.ledger import Reply, Report
from lclstream.core.tls import Credentials


class Desk:
    """Keeps the reports that come, answers with `reply`."""

    def __init__(self, identity: Path) -> None:
        self.reports: list[Report] = []
        self.reply = Reply()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = Credentials.from_folder(identity).server_context()
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}/reports"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        desk = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                desk.reports.append(Report.model_validate_json(body))
                answer = desk.reply.model_dump_json().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *words: object) -> None:
                """Keep the output of the tests clean."""

        return Handler


@contextmanager
def open_desk(identity: Path) -> Iterator[Desk]:
    desk = Desk(identity)
    thread = threading.Thread(target=desk.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield desk
    finally:
        desk.server.shutdown()
        desk.server.server_close()
        thread.join()
