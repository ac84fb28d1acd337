"""The workflow definitions in force: from files, read again when they change, and the logbook."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lclstream.core.errors import (
    InvalidConfigError,
    LclstreamError,
    NotFoundError,
)
from lclstream.core.models import describe
from lclstream.elog.client import AsyncElogClient
from lclstream.elog.definitions import (
    WorkflowDefinition,
    definition_files,
    from_logbook,
    is_ours,
    read_definitions,
)
from lclstream.elog.models import DefinitionDocument, JobDocument, Trigger

logger = logging.getLogger(__name__)

FILES_CHECKED_S = 2.0
"""How soon a changed file is noticed."""

Definitions = Sequence[WorkflowDefinition]


@dataclass(frozen=True, slots=True)
class _Remembered:
    until: float
    definitions: Definitions


class FileCatalog:
    """Definitions from files; a file that became unusable leaves the last good state."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the files.

        Raises:
            InvalidConfigError: names every fault of every file.
        """
        self._paths = paths
        self._signature = self._look()
        self._definitions = read_definitions(paths)
        self._look_after = time.monotonic() + FILES_CHECKED_S
        self.error = ""
        """Why the files cannot be used now; empty when they can."""

    def definitions(self) -> Definitions:
        """Return the definitions in force."""
        if time.monotonic() >= self._look_after:
            self._look_after = time.monotonic() + FILES_CHECKED_S
            self._refresh()
        return self._definitions

    def by_name(self) -> Mapping[str, WorkflowDefinition]:
        """Return the definitions in force by name."""
        return {each.name: each for each in self.definitions()}

    def _refresh(self) -> None:
        try:
            signature = self._look()
        except OSError as error:
            # A file may go while we look: an editor replaces it. The next look reads all anew.
            self._signature = ()
            self.error = str(error)
            return
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._definitions = read_definitions(self._paths)
        except InvalidConfigError as error:
            self.error = str(error)
            logger.error("definitions_unusable", extra={"reason": str(error)})  # noqa: TRY400
        else:
            self.error = ""
            names = [each.name for each in self._definitions]
            logger.info("definitions_read", extra={"definitions": names})

    def _look(self) -> tuple[tuple[str, int, int], ...]:
        """Return what changes when a file does."""
        found = []
        for path in definition_files(self._paths):
            if path.is_file():
                status = path.stat()
                found.append((str(path), status.st_mtime_ns, status.st_size))
        return tuple(found)


class LogbookCatalog:
    """Definitions of the logbook that are ours, remembered for a while."""

    def __init__(
        self,
        client: AsyncElogClient,
        files: FileCatalog,
        *,
        executables: Sequence[str],
        refresh_s: float,
    ) -> None:
        """Prepare; nothing is asked before the first event.

        Args:
            client: asks the logbook.
            files: what a definition may refer to; a name in both is taken from the files.
            executables: what marks a definition as ours.
            refresh_s: how long an answer is remembered.
        """
        self._client, self._files = client, files
        self._executables, self._refresh_s = executables, refresh_s
        self._remembered: dict[str, _Remembered] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def definitions(self, experiment: str) -> Definitions:
        """Return our definitions of an experiment.

        Raises:
            LclstreamError: the logbook cannot tell and nothing is remembered.
        """
        # Who comes meanwhile waits for the same answer.
        async with self._asking.setdefault(experiment, asyncio.Lock()):
            return await self._current(experiment)

    async def _current(self, experiment: str) -> Definitions:
        remembered = self._remembered.get(experiment)
        if remembered is not None and time.monotonic() < remembered.until:
            return remembered.definitions
        try:
            documents = await self._client.workflow_definitions(experiment)
        except NotFoundError:
            # The logbook does not know the experiment, so it has no definitions.
            documents = []
        except LclstreamError as error:
            if remembered is None:
                raise
            logger.warning("definitions_outdated", extra={"reason": str(error)})
            return remembered.definitions
        found = self._translated(documents, experiment)
        until = time.monotonic() + self._refresh_s
        self._remembered[experiment] = _Remembered(until, found)
        return found

    def _translated(self, documents: Sequence[object], experiment: str) -> Definitions:
        templates = self._files.by_name()
        found = []
        for data in documents:
            try:
                document = DefinitionDocument.model_validate(data)
                if document.trigger == Trigger.MANUAL or not is_ours(document, self._executables):
                    continue
                definition = from_logbook(document, experiment, templates)
            except ValidationError as error:
                _report(experiment, "; ".join(describe(error)))
                continue
            except InvalidConfigError as error:
                _report(experiment, str(error))
                continue
            if definition.name not in templates:
                found.append(definition)
        return found


def _report(experiment: str, reason: str) -> None:
    logger.warning("definition_unusable", extra={"experiment": experiment, "reason": reason})


def started_by_hand(
    job: JobDocument, experiment: str, files: FileCatalog, executables: Sequence[str]
) -> WorkflowDefinition | None:
    """Return the definition of a job that a person asked for, None when it is not ours.

    A definition in our files with trigger MANUAL answers to its name; otherwise the job's own
    definition must have one of our executables.

    Raises:
        InvalidConfigError: it is ours and not usable.
    """
    document = job.definition
    if document is None:
        return None
    templates = files.by_name()
    named = templates.get(document.name)
    if named is not None and named.trigger is Trigger.MANUAL and named.concerns(experiment):
        return named
    if not is_ours(document, executables):
        return None
    return from_logbook(document, experiment, templates, Trigger.MANUAL)
