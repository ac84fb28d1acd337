"""The process that runs a job's script: `python -m lclstream.jobs.runner FOLDER NDX`.

A backend starts it, at once or through a batch system. It is on its own from then on: the
service may die and come back. It

1. claims the run by creating a file that can exist once: a run that was submitted twice by
   mistake is still executed once;
2. records `active` (and `queued`, if whoever submitted died before it could);
3. executes the stored script, with /dev/null as stdin, and enforces the time limit;
4. waits until every process that came from the script is gone, also those that detached
   themselves, and records `completed` or `failed`.

Asked to end (SIGTERM, SIGINT, SIGHUP, SIGQUIT) it ends the script's processes and exits with
128 + signal *without* recording a state: only who asked knows whether the job was cancelled
or lost. Its start is on the path of every job, so it imports little.
"""

import argparse
import json
import os
import shlex
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from lclstream.core.errors import IllegalTransitionError
from lclstream.jobs import environment, history, layout, processes
from lclstream.jobs.states import JobState, last_run

GRACE_S = 5.0
"""What processes get between SIGTERM and SIGKILL."""
LEFTOVER_GRACE_S = 2.0
"""The same for what the script left behind when it ended by itself."""
BATCH_FORWARD_DELAY_S = 1.0
"""A batch system signals the whole process group; only if the script goes on after this time
was the signal for the runner alone, and is passed on."""
GIVE_UP_S = 30.0
"""A process that outlives SIGKILL this long hangs in the kernel; nothing more can be done."""
TICK_S = 0.1
LONGEST_WAIT_S = 3600.0
"""The kernel takes no time that is too long, and a folder may ask for any."""

TIMED_OUT = "9"
SETUP_FAILED = 7

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
PASSED_ON = frozenset({signal.SIGUSR1, signal.SIGUSR2})
WATCHED = ENDING | PASSED_ON | {signal.SIGCHLD}
# Python ignores these; a script expects them to work.
RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)


class Outcome(NamedTuple):
    """How a run ended."""

    state: JobState | None
    """None when the runner was asked to end."""
    info: str
    exit_code: int


class Run:
    """One run of one job, in this process."""

    def __init__(
        self,
        folder: Path,
        jobndx: int,
        *,
        time_limit_s: float | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self.folder = folder
        self.jobndx = jobndx
        self.spec: dict[str, Any] = json.loads((folder / layout.SPEC).read_text("utf-8"))
        self.in_slurm = "SLURM_JOB_ID" in os.environ
        self.native_id = os.environ.get("SLURM_JOB_ID") or str(os.getpid())
        minutes = self.spec.get("resources", {}).get("duration", 10)
        self.time_limit_s = float(minutes) * 60 if time_limit_s is None else time_limit_s
        self.grace_s = grace_s

    def claim(self) -> bool:
        """Return whether this process is the one that executes the run."""
        me = processes.look(os.getpid())
        content = {
            "native_id": self.native_id,
            "pid": os.getpid(),
            "start": me.start if me else 0,
            "boot": processes.boot_id(),
            "host": socket.gethostname(),
        }
        place = layout.claim_file(self.folder, self.jobndx)
        written = place.with_name(f".{place.name}.{socket.gethostname()}.{os.getpid()}")
        written.write_text(json.dumps(content))
        try:
            # Unlike a rename, a link fails where there is a file already; and it is complete.
            os.link(written, place)
        except FileExistsError:
            return False
        finally:
            written.unlink()
        return True

    def begin(self) -> bool:
        """Record that the run is active; return False when it must not run any more."""
        with history.locked(self.folder / layout.STATUS) as rows:
            if last_run(rows.rows) < self.jobndx:
                rows.append(self.jobndx, JobState.QUEUED, self.native_id)
            if layout.cancel_mark(self.folder, self.jobndx).exists():
                rows.append(0, JobState.CANCELED)
                return False
            rows.append(self.jobndx, JobState.ACTIVE)
        return True

    def end(self, outcome: Outcome) -> None:
        """Record how the run ended."""
        if outcome.state is not None:
            history.record(self.folder / layout.STATUS, self.jobndx, outcome.state, outcome.info)

    def environment(self) -> dict[str, str]:
        """Return the variables of the script."""
        from_batch = environment.of_batch_system(os.environ)
        own = {"jobid": self.native_id, "jobndx": str(self.jobndx), "base": str(self.folder)}
        if self.in_slurm:
            own |= {"mpirun": "srun", "nodes": os.environ.get("SLURM_JOB_NUM_NODES", "1")}
        kept = environment.inherited(os.environ) if self.spec["inherit_environment"] else {}
        asked: dict[str, str] = self.spec["environment"]
        return kept | from_batch | own | asked

    def command(self) -> list[str]:
        """Return the interpreter from the script's first line, and the script."""
        script = self.folder / layout.SCRIPT
        with script.open("rb") as file:
            first = file.readline().decode("utf-8", errors="replace")
        words = shlex.split(first[2:]) if first.startswith("#!") else []
        return [*(words or ["/bin/bash"]), str(script)]

    def spawn(self) -> int:
        """Start the script and return its process id; raises `OSError` or `ValueError`."""
        os.chdir(self.spec["directory"])
        command = self.command()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        log = self.folder / layout.LOG
        return os.posix_spawnp(
            command[0],
            command,
            self.environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log / f"stdout.{self.jobndx}"), flags, 0o644),
                (os.POSIX_SPAWN_OPEN, 2, str(log / f"stderr.{self.jobndx}"), flags, 0o644),
            ],
            setsigmask=[],
            setsigdef=[*RESTORED],
        )

    def execute(self) -> Outcome:
        """Run the script to its end."""
        try:
            script = self.spawn()
        except (OSError, ValueError) as error:
            return Outcome(JobState.FAILED, f"cannot run the script: {error}", SETUP_FAILED)
        return Watch(script, self).until_end()


class Watch:
    """Waits for a script and everything that came from it, and ends them when it is time."""

    def __init__(self, script: int, run: Run) -> None:
        self.script = script
        self.limit = time.monotonic() + run.time_limit_s
        self.grace_s = run.grace_s
        self.forward_delay_s = BATCH_FORWARD_DELAY_S if run.in_slurm else 0.0
        self.status: int | None = None
        self.asked: int | None = None
        self.timed_out = False
        self.terminate_at: float | None = None
        self.kill_at: float | None = None

    def until_end(self) -> Outcome:
        """Return how it ended, when no process is left."""
        while not self.is_over():
            self.wait()
            self.reap()
            self.decide()
            self.push()
        if self.asked is not None:
            return Outcome(None, "", 128 + self.asked)
        if self.timed_out:
            return Outcome(JobState.FAILED, TIMED_OUT, int(TIMED_OUT))
        code = os.waitstatus_to_exitcode(self.status or 0)
        if code == 0:
            return Outcome(JobState.COMPLETED, "", 0)
        # A negative code is the signal that ended the script; the shell's way to say so is 128+.
        return Outcome(JobState.FAILED, str(code), code if code > 0 else 128 - code)

    def is_over(self) -> bool:
        """Return whether the script has ended and nothing of it is left."""
        if self.status is None:
            return False
        if not processes.descendants(os.getpid()):
            return True
        return self.kill_at is not None and time.monotonic() > self.kill_at + GIVE_UP_S

    def wait(self) -> None:
        """Sleep until something happens, or it is time to do something."""
        now = time.monotonic()
        busy = self.terminate_at is not None or self.status is not None
        timeout = TICK_S if busy else min(max(0.0, self.limit - now), LONGEST_WAIT_S)
        got = signal.sigtimedwait(WATCHED, timeout)
        if got is None:
            return
        number = signal.Signals(got.si_signo)
        if number in ENDING and self.asked is None:
            self.asked = int(number)
            self.stop(time.monotonic() + self.forward_delay_s, self.grace_s)
        elif number in PASSED_ON and self.status is None:
            processes.send([self.script], number)

    def reap(self) -> None:
        """Collect everyone who has ended: the script and adopted orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.script:
                self.status = status

    def decide(self) -> None:
        """See whether the time is over, or only leftovers of the script remain."""
        now = time.monotonic()
        if self.status is not None:
            self.stop(now, LEFTOVER_GRACE_S)
        elif now >= self.limit and self.asked is None and not self.timed_out:
            self.timed_out = True
            self.stop(now, self.grace_s)

    def stop(self, when: float, grace_s: float) -> None:
        """Plan the end of all processes, unless it is planned already."""
        if self.kill_at is None:
            self.terminate_at, self.kill_at = when, when + grace_s

    def push(self) -> None:
        """Send the signals that are due."""
        now = time.monotonic()
        if self.kill_at is not None and now >= self.kill_at:
            processes.send(processes.descendants(os.getpid()), signal.SIGKILL)
        elif self.terminate_at is not None and now >= self.terminate_at:
            processes.send(processes.descendants(os.getpid()), signal.SIGTERM)
            self.terminate_at = self.kill_at


def isolate() -> None:
    """Drop every descriptor but stdio, take in orphans, and queue signals for `sigtimedwait`."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    processes.adopt_orphans()


def execute(run: Run) -> int:
    """Execute one run and return the exit code of this process."""
    if not run.claim():
        sys.stderr.write(f"run {run.jobndx} has a runner already; nothing to do\n")
        return 0
    try:
        if not run.begin():
            sys.stderr.write(f"run {run.jobndx} was cancelled before it began\n")
            return 0
        outcome = run.execute()
        run.end(outcome)
    except IllegalTransitionError as error:
        # Somebody else, who knew better, has recorded the end of this run.
        sys.stderr.write(f"run {run.jobndx}: {error}\n")
        return SETUP_FAILED
    return outcome.exit_code


def main() -> int:
    """Read the command line and execute one run."""
    parser = argparse.ArgumentParser(prog="lclstream.jobs.runner", description=execute.__doc__)
    parser.add_argument("folder", type=Path, help="the job's folder")
    parser.add_argument("jobndx", type=int, help="number of the run, from 1")
    parser.add_argument("--time-limit-s", type=float, help="instead of the job's duration")
    parser.add_argument("--grace-s", type=float, default=GRACE_S, help="from SIGTERM to SIGKILL")
    options = parser.parse_args()
    isolate()
    limits = {"time_limit_s": options.time_limit_s, "grace_s": options.grace_s}
    return execute(Run(options.folder, options.jobndx, **limits))


if __name__ == "__main__":
    sys.exit(main())
