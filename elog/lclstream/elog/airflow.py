"""Making DAG runs through Airflow's REST API, so that one event makes one run.

The DAG run's id is decided by the event, so asking twice is safe: Airflow answers 200 the first
time and 409 from then on. Answers are read by who must act:

- 200, 409: the run exists;
- 401: log in again, once for each token;
- 404: the DAG may not be parsed yet; NotFoundError;
- 400, 422 and other refusals: asking again is useless; RequestError;
- 5xx, 429, a redirect, no connection, or an answer that is not Airflow's: UnavailableError;
- 403, and 401 after a new login: UnavailableError too, because not the event is wrong but our
  account.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import httpx

from lclstream.core.errors import (
    InvalidConfigError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from lclstream.core.http import translate_errors
from lclstream.elog.access import read_password, read_secret, tls_context
from lclstream.elog.config import AirflowConfig

logger = logging.getLogger(__name__)

PAUSED_CACHE_S = 10.0
"""How long it is remembered whether a DAG is paused."""

SHOWN_ANSWER_LENGTH = 200


class Outcome(StrEnum):
    """How Airflow took the wish for a DAG run."""

    STARTED = "started"
    EXISTED = "existed"


class AirflowClient:
    """Logs in, looks whether DAGs are paused and makes DAG runs.

    Resource handling: an asynchronous context manager; owns its connections.
    """

    def __init__(self, config: AirflowConfig) -> None:
        """Prepare; nothing is sent before the first call.

        Raises:
            InvalidConfigError: certificates or the password file are not usable.
        """
        self._config = config
        self._http = httpx.AsyncClient(
            base_url=config.url,
            verify=tls_context(config.identity, config.ca),
            timeout=config.timeout_s,
            trust_env=False,
        )
        self._token: str | None = None
        self._login = asyncio.Lock()
        self._paused: dict[str, tuple[float, bool]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def is_paused(self, dag: str) -> bool:
        """Return whether a DAG is paused, remembered for `PAUSED_CACHE_S`.

        Raises:
            NotFoundError: Airflow does not know the DAG, or not yet.
            UnavailableError: trying again helps.
        """
        known = self._paused.get(dag)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        answer = await self._send("GET", f"/api/v2/dags/{dag}")
        _require(answer, dag)
        paused = bool(_document(answer).get("is_paused"))
        self._paused[dag] = (time.monotonic() + PAUSED_CACHE_S, paused)
        return paused

    async def start(self, dag: str, dag_run_id: str, conf: Mapping[str, Any]) -> Outcome:
        """Make a DAG run unless it exists.

        Args:
            dag: id of the DAG.
            dag_run_id: the identity of the event.
            conf: handed to the run; shown to every user of Airflow, so never a secret.

        Raises:
            NotFoundError: Airflow does not know the DAG, or not yet.
            RequestError: Airflow refuses, and will always do so.
            UnavailableError: trying again helps.
        """
        body = {
            # Must be there and null: the run stands for an event, not for a date.
            "logical_date": None,
            "dag_run_id": dag_run_id,
            "conf": dict(conf),
            "note": "run event of the Elog",
        }
        answer = await self._send("POST", f"/api/v2/dags/{dag}/dagRuns", body)
        if answer.status_code == httpx.codes.CONFLICT:
            return Outcome.EXISTED
        _require(answer, dag)
        if _document(answer).get("dag_run_id") != dag_run_id:
            raise UnavailableError(f"{self._config.url} did not answer as Airflow does")
        return Outcome.STARTED

    async def _send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        token = await self._valid_token(None)
        answer = await self._request(method, path, body, token)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            token = await self._valid_token(refused=token)
            answer = await self._request(method, path, body, token)
        return answer

    async def _request(
        self, method: str, path: str, body: Any, token: str | None
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with translate_errors(self._config.url):
                return await self._http.request(method, path, json=body, headers=headers)
        except httpx.RequestError as error:
            raise UnavailableError(f"no usable answer from {self._config.url}: {error}") from error

    async def _valid_token(self, refused: str | None) -> str:
        """Return a token other than the refused one; one login serves all who wait."""
        async with self._login:
            if self._token is None or self._token == refused:
                self._token = await self._new_token()
            return self._token

    async def _new_token(self) -> str:
        config = self._config
        if config.token_file is not None:
            return read_secret(config.token_file)
        if config.username is None or config.password_file is None:
            raise InvalidConfigError("airflow: expected username and password_file")
        login = {
            "username": config.username,
            "password": read_password(config.password_file, config.username),
        }
        answer = await self._request("POST", "/auth/token", login, None)
        token = _document(answer).get("access_token") if answer.is_success else None
        if not isinstance(token, str):
            text = f"{config.url} refused the login of {config.username!r}"
            raise UnavailableError(f"{text}: HTTP {answer.status_code}")
        logger.info("airflow_login", extra={"user": config.username})
        return token


def _require(answer: httpx.Response, dag: str) -> None:
    """Raise the error that an answer means, if any."""
    status = answer.status_code
    text = f"Airflow answered HTTP {status} for DAG {dag!r}: {_shown(answer)}"
    if status == httpx.codes.NOT_FOUND:
        raise NotFoundError(text)
    ours_is_wrong = status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
    waits = status in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS)
    if ours_is_wrong or waits or answer.is_redirect or answer.is_server_error:
        raise UnavailableError(text)
    if not answer.is_success:
        raise RequestError(text)


def _document(answer: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of an answer; a page of some proxy counts as no answer."""
    try:
        data = answer.json()
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise UnavailableError(f"{answer.url} answered no JSON object: {_shown(answer)}")
    return data


def _shown(answer: httpx.Response) -> str:
    return " ".join(answer.text.split())[:SHOWN_ANSWER_LENGTH]
