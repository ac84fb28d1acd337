"""The part of Airflow's REST API that the watcher uses, on a real port, with faults on demand."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

USER, PASSWORD = "watcher", "correct horse"


class Airflow:
    """Knows DAGs, keeps DAG runs, refuses a second run of one id."""

    def __init__(self, *dags: str) -> None:
        self.paused = dict.fromkeys(dags, False)
        self.runs: dict[tuple[str, str], dict[str, Any]] = {}
        self.posts: list[tuple[str, str]] = []
        """Every attempt, in order."""
        self.logins = 0
        self.fail_posts: list[int] = []
        """Statuses that the next posts are answered with, before anything is made."""
        self.fail_logins: list[int] = []
        self.before_answer: Callable[[str], None] = lambda dag_run_id: None
        """Called when a run was made and nothing was answered so far."""
        self.answer_raw: bytes | None = None
        """In place of JSON, as a broken proxy would."""
        self._token = "token-0"  # noqa: S105
        self._changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def ids(self) -> Counter[str]:
        """Ids of the runs that exist, and how many DAGs have them."""
        return Counter(dag_run_id for _, dag_run_id in self.runs)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Answer; after a stop on the same port."""
        airflow = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(*airflow.get(self.path, self.headers.get("Authorization")))

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size))
                self.reply(*airflow.post(self.path, body, self.headers.get("Authorization")))

            def reply(self, status: int, document: Any) -> None:
                raw = json.dumps(document).encode()
                if airflow.answer_raw is not None:
                    raw = airflow.answer_raw
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = False

            def handle_error(self, *_: object) -> None:
                """Say nothing about clients that were killed."""

        self._server = Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until a post has made a condition true."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise AssertionError(f"posts {self.posts}, runs {list(self.runs)}")

    def expire_token(self) -> None:
        self._token = f"token-{self.logins}-expired"

    def get(self, path: str, authorization: str | None) -> tuple[int, Any]:
        if authorization != f"Bearer {self._token}":
            return 401, {"detail": "Invalid or expired token"}
        dag = path.removeprefix("/api/v2/dags/")
        if dag not in self.paused:
            return 404, {"detail": f"The Dag with ID: `{dag}` was not found"}
        return 200, {"dag_id": dag, "is_paused": self.paused[dag]}

    def post(self, path: str, body: Any, authorization: str | None) -> tuple[int, Any]:
        if path == "/auth/token":
            return self._login(body)
        if authorization != f"Bearer {self._token}":
            return 401, {"detail": "Invalid or expired token"}
        dag = path.removeprefix("/api/v2/dags/").removesuffix("/dagRuns")
        status, document = self._make(dag, body)
        self.before_answer(body["dag_run_id"])
        with self._changed:
            self.posts.append((body["dag_run_id"], str(status)))
            self._changed.notify_all()
        return status, document

    def _login(self, body: Any) -> tuple[int, Any]:
        if self.fail_logins:
            return self.fail_logins.pop(0), {"detail": "no"}
        if body != {"username": USER, "password": PASSWORD}:
            return 401, {"detail": "Invalid credentials"}
        self.logins += 1
        self._token = f"token-{self.logins}"
        return 201, {"access_token": self._token}

    def _make(self, dag: str, body: Any) -> tuple[int, Any]:
        if self.fail_posts:
            status = self.fail_posts.pop(0)
            return status, {"detail": f"made to fail with {status}"}
        if dag not in self.paused:
            return 404, {"detail": f"DAG with dag_id: '{dag}' not found"}
        if "logical_date" not in body or body["logical_date"] is not None:
            return 422, {"detail": "logical_date: field required"}
        key = (dag, body["dag_run_id"])
        if key in self.runs:
            return 409, {"detail": {"reason": "Unique constraint violation"}}
        self.runs[key] = body
        return 200, {"dag_id": dag, "dag_run_id": body["dag_run_id"], "state": "queued"}
