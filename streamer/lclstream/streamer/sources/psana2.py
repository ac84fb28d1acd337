"""LCLS-II data through psana2, the facility's own library.

`source_identifier` says which data, in parts separated by commas:

| part | meaning |
|---|---|
| `exp=NAME` | an experiment: all runs, or those of `run=5,7,10-12` |
| `dir=FOLDER` | where its files are, if not in the usual place |
| `live` | the run is being taken: wait for files and events |
| `ffb` | read from the fast feedback storage |
| `files=PATH` | files, each by itself; several by several `files=` |
| `shmem=NAME` | the shared memory of a monitoring node |
| `drp=NAME` | inside a process of the data acquisition: its variable of this name |
| `max_events=N` | at most so many events |

With several ranks psana2 itself distributes the events of an experiment. Some of its ranks then
only look for events and serve the others: they yield nothing. Files and shared memory it does not
distribute: of files every rank takes its share, and shared memory gives each rank other events.
"""

import atexit
import itertools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lclstream.core.errors import (
    InvalidConfigError,
    LclstreamError,
    NotFoundError,
    UnavailableError,
)
from lclstream.streamer.config import Parameters, Psana2EventSourceConfig
from lclstream.streamer.events import Event
from lclstream.streamer.sources.psana2_run import Psana2Readings, Psana2Run
from lclstream.streamer.sources.psana2_setup import (
    arguments_of,
    changes_logged,
    prepare_environment,
    tolerate_missing_logbook,
)
from lclstream.streamer.sources.psana2_shmem import SharedMemory, wait_for_server
from lclstream.streamer.sources.psana_library import require
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_watch import Stop, StoppedError

logger = logging.getLogger(__name__)

# How many ranks build events and collect small data, besides the one that reads what there is.
_SERVING = {"PS_EB_NODES": "1", "PS_SRV_NODES": "0"}
_KEPT = (
    ("psana.detector.detector_impl", "DetectorImpl"),
    ("psana.detector.calibconstants", "CalibConstants"),
)
CURES = (
    "give event_source.calib_url, or event_source.skip_calib_load: all (or a list of detectors) "
    "where no calibrated values are needed"
)


class Psana2EventSource:
    """Reads all runs that psana2 finds.

    An event's index is its position in the whole source where that can be known: in files, which
    every rank reads from their beginning. Which event of an experiment a rank is handed, nobody
    knows beforehand; there, and in shared memory, the index is the time stamp, which is the same
    in every run of the streamer with any number of ranks, and no other event has.

    Resource handling: with several ranks the source must be read to its end by all of them;
    `close` does so when a rank stops before, and ends the run for all.

    Error handling: what goes wrong inside of psana2 is raised as it is, with a note. When one of
    several ranks fails where others wait for it, all are ended together with it.
    """

    def __init__(self, parameters: Parameters, rank: int, size: int) -> None:
        """Open the data source; in a distributed run all ranks must do so.

        Raises:
            InvalidConfigError: psana2 is not installed, or the source cannot be as it is said.
            NotFoundError: there are no such files.
            DecodeError: a file is not XTC2.
            UnavailableError: nobody serves the shared memory.
        """
        config = parameters.event_source
        require(2, config.type)
        if not isinstance(config, Psana2EventSourceConfig):
            raise InvalidConfigError(f"not a Psana2EventSource: {config.type}")
        self._rank, self._size = rank, size
        arguments = arguments_of(parameters.source_identifier, config)
        self._is_distributed = "exp" in arguments and size > 1
        self._is_by_position = "files" in arguments
        self._limit: int = arguments.get("max_events", 0)
        _check_files(arguments.get("files", []))
        prepare_environment(
            parameters.source_identifier, config, size, is_distributed=self._is_distributed
        )
        if "shmem" in arguments:
            wait_for_server(arguments["shmem"])
        with changes_logged(arguments) as look:
            self._source = self._opened(arguments, ask_logbook=config.ask_logbook)
            look(self._source)
        self._shared_memory = SharedMemory(self._source.dm) if "shmem" in arguments else None
        self._runs: Iterator[Any] = iter(self._source.runs())
        self._run: Psana2Run | None = None
        self._finished = False

    def __iter__(self) -> Iterator[Event]:
        """Yield the events of this rank, run by run."""
        count = itertools.count()
        try:
            for run in self._all_runs():
                for event in run:
                    number = next(count)
                    if self._is_enough(number):
                        return
                    if self._is_mine(number):
                        yield self._event(run, event, number)
            self._settle()
        except StoppedError:
            logger.info("psana_stopped_while_waiting")
        except GeneratorExit:
            raise
        except BaseException:
            self._fail_together()
            raise

    @property
    def first_rank(self) -> int:
        """The lowest rank that gets events: those before it serve the others."""
        if not self._is_distributed:
            return 0
        return 1 + int(os.environ.get("PS_EB_NODES") or _SERVING["PS_EB_NODES"])

    def interrupt_by(self, stop: Stop) -> None:
        """Let a wish to end cut short every wait for what comes into shared memory."""
        if self._shared_memory is not None:
            self._shared_memory.interrupt_by(stop)

    def close(self) -> None:
        """Let the other ranks go on: they wait for this one to take its part."""
        if not self._is_distributed or self._finished:
            return
        if self._run is None:
            # They are about to begin, or have failed like this one.
            self._fail_together()
            return
        self._run.end()
        for run in self._all_runs():
            run.end()
        self._settle()

    def _settle(self) -> None:
        """Part from the other ranks."""
        if self._is_distributed and not self._finished:
            settle(self._rank)
        self._finished = True

    def _all_runs(self) -> Iterator[Psana2Run]:
        while True:
            forget_detectors()
            try:
                run = next(self._runs, None)
            except OSError as error:
                if not type(error).__module__.startswith("requests"):
                    raise
                raise UnavailableError(f"no calibration constants: {error}; {CURES}") from error
            except SystemExit as error:
                # So it answers a calibration service that is overloaded.
                raise UnavailableError(f"psana2 gave up; see its messages. {CURES}") from error
            if run is None:
                return
            self._run = Psana2Run(run)
            yield self._run

    def _is_enough(self, number: int) -> bool:
        """Return whether there were as many events as wanted before the n-th of this rank."""
        if not self._limit or self._is_distributed:
            # psana2 counts those that it distributes.
            return False
        # In shared memory the other ranks have as many.
        before = number if self._is_by_position else number * self._size + self._rank
        return before >= self._limit

    def _is_mine(self, number: int) -> bool:
        return not self._is_by_position or number % self._size == self._rank

    def _event(self, run: Psana2Run, event: Any, number: int) -> Event:
        timestamp = int(event.timestamp)
        return Event(
            timestamp=timestamp,
            index=number if self._is_by_position else timestamp,
            run=run.number,
            experiment=run.experiment,
            run_timestamp=run.timestamp,
            step=run.step,
            readings=Psana2Readings(run, event),
        )

    def _opened(self, arguments: dict[str, Any], *, ask_logbook: bool) -> Any:
        if self._is_distributed:
            check_ranks(self._rank, self._size)
        import psana
        from psana.psexp.ds_base import DataSourceBase

        tolerate_missing_logbook(DataSourceBase, ask=ask_logbook)
        try:
            # Its own level of logging is text for people, line by line.
            return psana.DataSource(**{"log_level": "WARNING", **arguments})
        except LclstreamError:
            self._fail_together()
            raise
        except FileNotFoundError as error:
            self._fail_together()
            raise NotFoundError(f"source_identifier: {error}") from error
        # Of its own checks psana2 makes assertions and plain exceptions, or it leaves.
        except (Exception, SystemExit) as error:
            self._fail_together()
            raise InvalidConfigError(
                f"source_identifier: psana2 cannot read it: {error}"
            ) from error

    def _fail_together(self) -> None:
        """Make sure that no rank waits for this one when it is gone."""
        if not self._is_distributed:
            return
        # Not at once: first this rank says what went wrong.
        logger.error("psana_ranks_will_be_ended", extra={"rank": self._rank})
        atexit.register(_end_all_ranks)
        self._finished = True


def check_ranks(rank: int, size: int) -> None:
    """Refuse what psana2 would make something else of.

    Raises:
        InvalidConfigError: there are too few ranks, or MPI does not see them.
    """
    counts = [os.environ.get(name) or default for name, default in _SERVING.items()]
    serving = 1 + sum(int(count) for count in counts if count.isdecimal())
    if size <= serving:
        raise InvalidConfigError(
            f"of {size} ranks psana2 would use {serving} to serve the others; an experiment takes "
            f"1 rank, or {serving + 1} and more"
        )
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise InvalidConfigError(f"several ranks of psana2 need mpi4py: {error}") from None
    seen = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    if seen != (rank, size):
        raise InvalidConfigError(
            f"the launcher says rank {rank} of {size}, but MPI says rank {seen[0]} of {seen[1]}: "
            "every rank would read all events; is it the launcher of psana's MPI?"
        )


def forget_detectors() -> None:
    """Let psana2 make the detectors of the next run anew.

    It keeps them by their names, with the constants that they have worked out, also when the
    detector of the next run is of another version and never gets its own.
    """
    for module, name in _KEPT:
        registry = getattr(getattr(sys.modules.get(module), name, None), "_registry", None)
        if isinstance(registry, dict):
            registry.clear()


def settle(rank: int) -> None:
    """Wait for all ranks; on rank 0, take what it was sent and did not read.

    Several ranks may have asked it to end a run. MPI does not end while such a message is left.
    """
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    world.Barrier()
    status, number = MPI.Status(), np.empty(1, np.intc)
    while rank == 0 and world.Iprobe(status=status):
        world.Recv(number, source=status.Get_source(), tag=status.Get_tag())


def _check_files(paths: list[str]) -> None:
    """Look at the beginning of files: psana2 aborts the whole process when it is not XTC2.

    Raises:
        InvalidConfigError: a file is empty.
        NotFoundError: a file is not there.
        DecodeError: a file is not XTC2.
    """
    for path in paths:
        if next(iter(Xtc2File(Path(path))), None) is None:
            raise InvalidConfigError(f"source_identifier: {path} is empty")


def _end_all_ranks() -> None:
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(1)
