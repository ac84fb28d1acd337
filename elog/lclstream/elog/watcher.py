"""The watcher: from run events on Kafka to DAG runs in Airflow, each exactly once.

A message is read, added to what is known of its run, and each definition that waits for the
news gets its DAG run. Only when Airflow has said that all of them exist is the message finished
and its offset committed. So a crash anywhere makes the next reader ask again, and Airflow
answers that the run exists.

Messages wait for Airflow side by side: a DAG that Airflow does not know holds up nobody else.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from lclstream.core.errors import DecodeError, InvalidConfigError, RequestError
from lclstream.elog import deadletters
from lclstream.elog.airflow import AirflowClient, Outcome
from lclstream.elog.catalog import FileCatalog, LogbookCatalog, started_by_hand
from lclstream.elog.client import AsyncElogClient
from lclstream.elog.config import ElogConfig, WatchConfig
from lclstream.elog.consumer import KafkaReader
from lclstream.elog.deadletters import DeadLetters
from lclstream.elog.definitions import WorkflowDefinition
from lclstream.elog.history import History, News
from lclstream.elog.messages import RawMessage
from lclstream.elog.models import Trigger, read_event
from lclstream.elog.offsets import Partition
from lclstream.elog.producer import KafkaWriter
from lclstream.elog.retries import Retries
from lclstream.elog.rules import DagTrigger, build, triggers
from lclstream.elog.status import Counters, Status

logger = logging.getLogger(__name__)

DRAIN_S = 3.0
"""What triggers under way get to finish when the watcher is asked to stop."""

Action = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _Work:
    """A message under way."""

    task: asyncio.Task[None]
    news: Sequence[News]


class Watcher:
    """Receives messages from a reader and makes DAG runs.

    Resource handling: `run` owns the reader, the connections and a task for each message under
    way; all are gone when it returns.

    Error handling: an event that cannot be handled becomes a dead letter; what is down is
    retried until the event is too old; only a wrong configuration ends `run`.
    """

    def __init__(self, config: WatchConfig) -> None:
        """Prepare; reads the workflow definitions.

        Raises:
            InvalidConfigError: names what is wrong.
        """
        self._config = config
        self._options = config.kafka.client_options()
        self._files = FileCatalog(config.workflows)
        self._history = History(recorded_files=_pattern(config.nonrec_files))
        self._executables = config.elog.executables if config.elog else ()
        self._reader = KafkaReader(
            self._options, config.kafka.group, config.kafka.topics, in_flight=config.in_flight
        )
        self._writer = (
            KafkaWriter(config.kafka.producer_options()) if config.dead_letters.topic else None
        )
        self._letters = DeadLetters(
            self._writer, config.dead_letters.topic, config.dead_letters.file
        )
        self._airflow = AirflowClient(config.airflow)
        self._elog = _elog_client(config.elog) if config.elog else None
        self._logbook = (
            LogbookCatalog(
                self._elog,
                self._files,
                executables=config.elog.executables,
                refresh_s=config.elog.refresh_s,
            )
            if self._elog and config.elog
            else None
        )
        self._work: dict[tuple[Partition, int], _Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._retries = Retries(
            first_s=config.airflow.retry_first_s,
            most_s=config.airflow.retry_most_s,
            unknown_s=config.airflow.unknown_dag_s,
        )
        self._counters = Counters()
        self.joined = asyncio.Event()
        """Set when the group has accepted us."""

    @property
    def status(self) -> Status:
        """How the watcher stands now."""
        troubles = dict(self._retries.troubles)
        if self._files.error:
            troubles["workflows"] = self._files.error
        return Status.of(
            self._reader.statistics, self._counters, troubles, retries=self._retries.count
        )

    async def run(self) -> None:
        """Watch until cancelled; then finish what is under way and leave the group."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._airflow)
            if self._writer is not None:
                await stack.enter_async_context(self._writer)
            if self._elog is not None:
                await stack.enter_async_context(self._elog)
            reader = asyncio.create_task(self._reader.run(self), name="kafka reader")
            try:
                await asyncio.wait([reader])
            finally:
                await self._drain()
                reader.cancel()
                await asyncio.wait([reader])
        if not reader.cancelled():
            reader.result()

    async def _drain(self) -> None:
        """Let what is under way end; what does not is left to the next reader."""
        self._closing = True
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # What the reader calls.

    def assigned(self) -> None:
        """The group has accepted us."""
        self.joined.set()

    def deliver(self, message: RawMessage) -> None:
        """Take a message: add it to what is known at once, then act on the news in a task."""
        if self._closing:
            return
        self._counters.messages += 1
        try:
            event = read_event(message.value, message.position)
            news = self._history.add(event) if event is not None else []
        except DecodeError as error:
            reason = str(error)
            self._start(message, [], lambda: self._bury(message, reason))
            return
        except Exception as error:
            # Left alone it would never be finished, and nothing behind it ever committed.
            logger.exception("message_failed")
            reason = f"{type(error).__name__}: {error}"
            self._start(message, [], lambda: self._bury(message, reason))
            return
        if news:
            self._start(message, news, lambda: self._act(message, news))
        else:
            self._reader.finish(message)

    def revoked(self, partitions: frozenset[Partition]) -> None:
        """Partitions went to another watcher, which starts at the first unfinished message."""
        for key, work in list(self._work.items()):
            if key[0] in partitions:
                work.task.cancel()
                self._history.forget(work.news)
                del self._work[key]

    def _start(self, message: RawMessage, news: Sequence[News], action: Action) -> None:
        key = (message.partition, message.position.offset)
        task = asyncio.create_task(self._handled(message, action), name=f"message {key}")
        self._work[key] = _Work(task, news)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(key, done))

    def _ended(self, key: tuple[Partition, int], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if key in self._work and self._work[key].task is task:
            del self._work[key]

    async def _handled(self, message: RawMessage, action: Action) -> None:
        await self._guarded(message, action)
        self._reader.finish(message)

    async def _guarded(
        self, message: RawMessage, action: Action, dag_run_id: str | None = None
    ) -> None:
        """Put a message aside when we fail: a fault of ours must not stop all runs to come."""
        try:
            await action()
        except Exception as error:
            logger.exception("message_failed")
            await self._bury(message, f"{type(error).__name__}: {error}", dag_run_id)

    # From news to DAG runs.

    async def _act(self, message: RawMessage, news: Sequence[News]) -> None:
        """Return when every DAG run that the news ask for exists, or never has to."""
        wishes = self._wishes(news, self._files.definitions())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fulfil_all(message, wishes))
            group.create_task(self._guarded(message, lambda: self._ask_logbook(message, news)))

    def _wishes(
        self, news: Sequence[News], definitions: Sequence[WorkflowDefinition]
    ) -> list[DagTrigger]:
        url = self._config.counters_url
        return [wish for each in news for wish in triggers(each, definitions, url)]

    async def _ask_logbook(self, message: RawMessage, news: Sequence[News]) -> None:
        """Act for the logbook's own definitions, and for a person who pressed the button."""
        try:
            wishes = self._wishes_of_person(news)
            if self._logbook is not None:
                wishes += self._wishes(news, await self._definitions(self._logbook, news))
        except RequestError as error:
            await self._bury(message, str(error))
        else:
            await self._fulfil_all(message, wishes)

    def _wishes_of_person(self, news: Sequence[News]) -> list[DagTrigger]:
        """Return what a person asks for.

        Raises:
            InvalidConfigError: the definition is ours and not usable.
        """
        wishes = []
        for each in news:
            if each.fact.trigger is Trigger.MANUAL and each.job is not None:
                found = started_by_hand(each.job, each.experiment, self._files, self._executables)
                if found is not None:
                    wishes.append(build(each, found, self._config.counters_url))
        return wishes

    async def _definitions(
        self, logbook: LogbookCatalog, news: Sequence[News]
    ) -> Sequence[WorkflowDefinition]:
        newest = max(each.happened_at for each in news)
        return await self._retries.until_done(
            "elog",
            lambda: logbook.definitions(news[0].experiment),
            lambda: self._is_stale(newest, None),
        )

    async def _fulfil_all(self, message: RawMessage, wishes: Sequence[DagTrigger]) -> None:
        async with asyncio.TaskGroup() as group:
            for wish in wishes:
                action = partial(self._fulfil, message, wish)
                group.create_task(self._guarded(message, action, wish.dag_run_id))

    async def _fulfil(self, message: RawMessage, wish: DagTrigger) -> None:
        """Return when the DAG run exists, or never has to."""
        told = {"dag": wish.dag, "dag_run_id": wish.dag_run_id}
        if self._is_stale(wish.happened_at, wish.max_age_s):
            self._counters.stale += 1
            happened_at = wish.happened_at.isoformat()
            logger.warning("trigger_stale", extra={**told, "happened_at": happened_at})
            return
        try:
            outcome = await self._retries.until_done(
                f"airflow {wish.dag}",
                lambda: self._ask_airflow(wish),
                lambda: self._is_stale(wish.happened_at, wish.max_age_s),
            )
        except RequestError as error:
            await self._bury(message, str(error), wish.dag_run_id)
            return
        if outcome is Outcome.STARTED:
            self._counters.started += 1
        else:
            self._counters.existed += 1
        logger.info("trigger_accepted", extra={**told, "outcome": outcome.value})

    async def _ask_airflow(self, wish: DagTrigger) -> Outcome:
        if await self._airflow.is_paused(wish.dag):
            self._counters.paused += 1
            # Airflow keeps the run until the DAG is unpaused; its first task judges the age.
            logger.warning("dag_paused", extra={"dag": wish.dag, "dag_run_id": wish.dag_run_id})
        return await self._airflow.start(wish.dag, wish.dag_run_id, wish.conf)

    def _is_stale(self, happened_at: datetime, max_age_s: float | None) -> bool:
        age_s = (datetime.now(UTC) - happened_at).total_seconds()
        return age_s > (max_age_s or self._config.max_age_s)

    async def _bury(self, message: RawMessage, reason: str, dag_run_id: str | None = None) -> None:
        """Store a dead letter, however long that takes."""
        content = deadletters.letter(message, reason, dag_run_id)
        # One after the other: what has it gets it once, however often the next one fails.
        for store in self._letters.places():
            await self._retries.until_done("dead_letters", partial(store, content), lambda: False)
        deadletters.log(content)
        self._counters.dead_letters += 1


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise InvalidConfigError(f"nonrec_files: {error}, got {text!r}") from None


def _elog_client(config: ElogConfig) -> AsyncElogClient:
    login = None
    if config.username is not None and config.password_file is not None:
        login = (config.username, config.password_file)
    return AsyncElogClient(config.url, identity=config.identity, ca=config.ca, login=login)
