"""The command `lclstream job`: the service, and psik's verbs on a folder of jobs."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lclstream.jobs.control import JobControl
    from lclstream.jobs.states import Transition
    from lclstream.jobs.store import Job

DESCRIPTION = """\
Run scripts as jobs, here or on a SLURM cluster, and follow them.

A job is a folder (spec.json, status.csv, log/, work/) that psik 3 reads too. All verbs but
`serve` work on the folders themselves and need no running service.
"""
CONFIGURATION = """\
The configuration is found as psik finds it: --config FILE, $PSIK_CONFIG,
$VIRTUAL_ENV/etc/psik.json, /etc/psik.json. Smallest one:  {"prefix": "/data/jobs"}
"""
CANCEL_TIMEOUT_S = 20.0
LOOK_S = 0.1
SPEC_EXAMPLE = """\
example of a SPECFILE (YAML or JSON):
  name: hello
  script: |
    #!/bin/bash
    hostname
  resources: {duration: 5, node_count: 1}
  backend: slurm
"""
SERVE_EXAMPLE = """\
example of a CONFIG (YAML or JSON):
  prefix: /data/jobs              # folder of all job folders
  backends:
    default: {type: local}
    slurm:   {type: slurm, queue_name: main, attributes: {slurm_conf: /etc/slurm/slurm.conf}}
  identity: /etc/lclstream/jobs   # folder with id.crt, id.key, ca.crt
  port: 14433
  admins: ["cn:transfers"]        # callers that may see and change every job
  callback_hosts: ["127.0.0.1"]   # where jobs may send callbacks
  directories: ["/data/shared"]   # roots for the `directory` of a job
"""

Commands = Any  # argparse names the type of its sub-parsers only in private.


def add_commands(commands: Commands) -> None:
    """Add `job` and its verbs."""
    job = commands.add_parser(
        "job",
        help="run scripts as jobs, here or on a SLURM cluster",
        description=DESCRIPTION,
        epilog=CONFIGURATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    job.set_defaults(run=lambda _: job.print_help() or 0)
    verbs = job.add_subparsers(title="verbs", metavar="VERB")
    serve = _verb(
        verbs, "serve", serve_jobs, "offer the jobs of a folder over HTTPS", SERVE_EXAMPLE
    )
    serve.add_argument("config", type=Path, metavar="CONFIG", help="configuration, YAML or JSON")
    run = _verb(verbs, "run", run_job, "make a job from a file and start it", SPEC_EXAMPLE)
    run.add_argument("spec", type=Path, metavar="SPECFILE", help="what to run, YAML or JSON")
    run.add_argument("--no-submit", action="store_true", help="only make the job's folder")
    run.add_argument(
        "--here", action="store_true", help="run in the current directory, not in a fresh one"
    )
    run.add_argument("--wait", action="store_true", help="wait for its end; exit 1 if it failed")
    _verb(verbs, "ls", list_jobs, "list all jobs with their newest state", CONFIGURATION)
    for name, function, text in (
        ("show", show_jobs, "show the history of jobs"),
        ("start", start_jobs, "start jobs that are new or have ended"),
        ("cancel", cancel_jobs, "end jobs and wait until they are gone"),
        ("rm", remove_jobs, "delete the folders of jobs that are not running"),
    ):
        verb = _verb(verbs, name, function, text, f"example: lclstream job {name} 1795210993.191")
        verb.add_argument("jobids", nargs="+", metavar="JOBID", help="as `run` and `ls` print it")
    logs = _verb(
        verbs,
        "logs",
        show_logs,
        "print the logs of a job",
        "example: lclstream job logs 1795210993.191 stdout.1",
    )
    logs.add_argument("jobid", metavar="JOBID", help="as `run` and `ls` print it")
    logs.add_argument("names", nargs="*", metavar="LOG", help="stdout.1, console, ...; all if none")


def _verb(
    verbs: Commands, name: str, function: Any, text: str, epilog: str
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=function)
    if name != "serve":
        verb.add_argument("--config", type=Path, metavar="FILE", help="instead of psik's places")
    return verb


def say(text: str) -> None:
    """Print one line of the result."""
    sys.stdout.write(text + "\n")


def serve_jobs(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    import asyncio

    from lclstream.core import logging
    from lclstream.core.lifecycle import serve
    from lclstream.jobs.config import load
    from lclstream.jobs.service import JobsService

    config = load(options.config)
    logging.configure()

    async def main() -> int:
        return await serve(JobsService(config))

    return asyncio.run(main())


def control_of(options: argparse.Namespace) -> "JobControl":
    """Return what acts on the folders of the configured prefix."""
    from lclstream.jobs.config import load
    from lclstream.jobs.control import JobControl

    return JobControl(load(options.config))


def run_job(options: argparse.Namespace) -> int:
    """Make a job and start it."""
    from lclstream.core.models import load_file
    from lclstream.jobs.models import JobSpec
    from lclstream.jobs.states import JobState

    control = control_of(options)
    spec = load_file(JobSpec, options.spec)
    if options.here or spec.directory is not None:
        # The job runs somewhere else, so that a relative path would lead there.
        directory = str(Path.cwd() if options.here else Path(spec.directory or "").absolute())
        spec = spec.model_copy(update={"directory": directory})
    job = control.create(spec, user_name(), submit=not options.no_submit, trusted=True)
    is_new = job.state() is JobState.NEW
    say(f"{'Created' if is_new else 'Queued'} {job.jobid}")
    if is_new and not options.no_submit:
        sys.stderr.write("the batch system does not answer; the service submits it later\n")
        return 1
    if not options.wait or options.no_submit:
        return 0
    return 0 if wait_for_end(control, job, None) is JobState.COMPLETED else 1


def user_name() -> str:
    """Return the caller name of whoever types the command."""
    from lclstream.jobs.store import name_of

    return name_of(os.geteuid())


def list_jobs(options: argparse.Namespace) -> int:
    """Print one line for each job."""
    control = control_of(options)
    say(f"{'jobid':<15} {'state':>10} jobndx info name")
    for job, rows in settled(control, readable(control)):
        if rows:
            last = rows[-1]
            name = job.spec.name
            say(f"{job.jobid:<15} {last.state:<10} {last.jobndx:>6} {last.info:>4} {name}")
    return 0


def readable(control: "JobControl") -> "list[Job]":
    """Return all jobs but those whose folders are damaged, which are named on stderr."""
    from lclstream.core.errors import NotFoundError, RequestError

    found = []
    for jobid in control.store.ids():
        try:
            job = control.store.get(jobid)
            job.spec  # noqa: B018 - reads it
        except NotFoundError:
            # Removed since they were listed, or not a job's folder at all.
            continue
        except RequestError as error:
            sys.stderr.write(f"{error}\n")
        else:
            found.append(job)
    return found


def show_jobs(options: argparse.Namespace) -> int:
    """Print the history of jobs."""
    control = control_of(options)
    jobs = [control.store.get(jobid) for jobid in options.jobids]
    for job, rows in settled(control, jobs):
        say(f"{job.spec.name}\n    base: {job.folder}\n    work: {job.directory}\n")
        say("    time ndx state info")
        for row in rows:
            say(f"    {row.time:.3f} {row.jobndx:3d} {row.state:>10} {row.info:>8}")
    return 0


def show_logs(options: argparse.Namespace) -> int:
    """Print logs."""
    from lclstream.jobs import exchange

    control = control_of(options)
    job = control.store.get(options.jobid)
    names = options.names or exchange.log_names(job)
    for name in names:
        piece = exchange.read_log(job, name, None, control.config.max_log_bytes)
        if len(names) > 1:
            cut = f" (last {len(piece.data)} of {piece.size} bytes)" if piece.offset else ""
            say(f"==> {name}{cut} <==")
        sys.stdout.write(piece.data.decode(errors="replace"))
    return 0


def start_jobs(options: argparse.Namespace) -> int:
    """Start the next run of jobs."""
    control = control_of(options)
    for jobid in options.jobids:
        control.start(control.store.get(jobid))
        say(f"Queued {jobid}")
    return 0


def cancel_jobs(options: argparse.Namespace) -> int:
    """End jobs."""
    control = control_of(options)
    jobs = [control.store.get(jobid) for jobid in options.jobids]
    for job in jobs:
        control.cancel(job)
    code = 0
    for job in jobs:
        state = wait_for_end(control, job, CANCEL_TIMEOUT_S)
        if state.is_final:
            say(f"{state.capitalize()} {job.jobid}")
        else:
            sys.stderr.write(f"job {job.jobid} is still {state}\n")
            code = 1
    return code


def remove_jobs(options: argparse.Namespace) -> int:
    """Delete jobs."""
    control = control_of(options)
    jobs = [control.store.get(jobid) for jobid in options.jobids]
    for job, _ in settled(control, jobs):
        control.store.remove(job)
        say(f"Deleted {job.jobid}")
    return 0


def wait_for_end(control: "JobControl", job: "Job", timeout_s: float | None) -> Any:
    """Follow a job until it has ended or the time is over; return its state."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        _, rows = settled(control, [job])[0]
        state = rows[-1].state
        if state.is_final or (end is not None and time.monotonic() > end):
            return state
        control.advance(job)
        time.sleep(LOOK_S)


def settled(control: "JobControl", jobs: "Sequence[Job]") -> "list[tuple[Job, list[Transition]]]":
    """Return jobs with their histories, after asking their backends about those that run."""
    from lclstream.core.errors import SchedulerError

    try:
        control.look(jobs)
    except SchedulerError as error:
        sys.stderr.write(f"states may be old: {error}\n")
    return [(job, job.history()) for job in jobs]
