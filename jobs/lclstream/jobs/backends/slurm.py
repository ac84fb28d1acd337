"""Jobs on a SLURM cluster, through its own commands and their plain text.

The batch script is a file in the job's folder. Its path is what a submission that was
interrupted is found by; it does nothing but replace itself by the runner, so that scancel
reaches the runner at once.
"""

import logging
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from lclstream.core.errors import RequestError, SchedulerError, SubmitError
from lclstream.core.files import write_atomically
from lclstream.jobs import environment, layout
from lclstream.jobs.backends.protocol import Run, Sighting, runner_command
from lclstream.jobs.models import BackendConfig, JobSpec
from lclstream.jobs.states import JobState

logger = logging.getLogger(__name__)

# Commands answer within milliseconds; a busy controller may take seconds.
ANSWER_TIMEOUT_S = 20.0
SUBMIT_TIMEOUT_S = 60.0
# A command line may be 128 KiB; an id has up to 10 digits.
IDS_AT_ONCE = 500

ALLOWED_ATTRIBUTES = frozenset(
    {
        "--comment", "--constraint", "--gres", "--licenses", "--mem", "--mem-per-cpu",
        "--mem-per-gpu", "--tmp",
    }
)  # fmt: skip
"""What a job may set when its site says nothing; all of them only shape its own allocation."""

QUEUED = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"})
ACTIVE = frozenset(
    {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "RESIZING", "SIGNALING"}
)
FAILED_TO_LAUNCH = re.compile(r"launch.failed.requeued.held|JobHoldMaxRequeue", re.IGNORECASE)
NOT_KNOWN = re.compile(r"Invalid job id", re.IGNORECASE)
# What sbatch says when nobody is there, in contrast to a refusal.
UNREACHABLE = re.compile(
    r"Unable to contact|Connection refused|Socket timed out|Zero Bytes|timed out|"
    r"Transport endpoint|slurmctld.*(not responding|down)|temporarily|Protocol authentication|"
    r"[Mm]unge|Slurm backup controller in standby|[Tt]oo many|Resource busy",
)


class SlurmBackend:
    """Runs jobs on the cluster that `slurm_conf` names, or on the default one."""

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self._conf = config.attributes.get("slurm_conf") or os.environ.get("SLURM_CONF", "")
        self._problem: str | None = None
        allowed = config.attributes.get("allow_attributes")
        self._allowed = (
            ALLOWED_ATTRIBUTES
            if allowed is None
            else frozenset(name.strip() for name in allowed.split(",") if name.strip())
        )

    @property
    def group(self) -> str:
        """The cluster."""
        return f"slurm:{self._conf}"

    def check(self, spec: JobSpec) -> None:
        """Refuse options that the site does not leave to its users."""
        refused = sorted(name for name in spec.attributes if name not in self._allowed)
        if refused:
            names = ", ".join(repr(name) for name in refused)
            allowed = ", ".join(sorted(self._allowed)) or "none"
            raise RequestError(f"attributes {names} may not be set; allowed: {allowed}")

    def options(self, spec: JobSpec) -> dict[str, str]:
        """Return the options of sbatch: the site's with the job's over them."""
        site = {k: v for k, v in self._config.attributes.items() if k.startswith("-")}
        return site | spec.attributes

    def arguments(self, run: Run, spec: JobSpec) -> list[str]:
        """Return the arguments of sbatch before the script; what is not set is left out."""
        asked, config = spec.resources, self._config
        found = {
            "--job-name": spec.name,
            "--time": asked.duration,
            "--nodes": asked.node_count,
            "--ntasks": asked.process_count,
            "--ntasks-per-node": asked.processes_per_node,
            "--gpus-per-task": asked.gpu_cores_per_process,
            "--cpus-per-task": asked.cpu_cores_per_process,
            "--partition": config.queue_name,
            "--account": config.project_name,
            "--reservation": config.reservation_id,
        }
        options = [f"{option}={value}" for option, value in found.items() if value]
        if asked.exclusive_node_use:
            options.append("--exclusive")
        site = {k: v for k, v in config.attributes.items() if k.startswith("-")}
        mine = {k: v for k, v in spec.attributes.items() if k.startswith("-")}
        for option, value in (site | mine).items():
            # One argument: a value can then never be taken for an option.
            options += [f"{option}={value}"] if option.startswith("--") else [option, value]
        # In a pattern of file names `%` begins a symbol.
        console = str(run.folder / layout.LOG / layout.CONSOLE).replace("%", "%%")
        return [
            "--parsable",
            # Runs are repeated by who owns them, not by the batch system behind their back.
            "--no-requeue",
            "--open-mode=append",
            f"--chdir={run.folder}",
            f"--output={console}",
            f"--error={console}",
            *options,
        ]

    def submit(self, run: Run, spec: JobSpec) -> str:
        """Hand the run to sbatch and return the job's number."""
        script = layout.batch_file(run.folder, run.jobndx)
        command = shlex.join(runner_command(self._config, run))
        write_atomically(script, f"#!/bin/bash\nexec {command}\n".encode(), 0o700)
        arguments = [*self.arguments(run, spec), str(script)]
        try:
            answer = self._command("sbatch", *arguments, timeout_s=SUBMIT_TIMEOUT_S)
        except SchedulerError as error:
            if UNREACHABLE.search(str(error)):
                raise
            raise SubmitError(str(error)) from error
        # `number` or `number;cluster`, after whatever the site's plug-ins print.
        found = re.search(r"^(\d+)(;.*)?$", answer.strip().splitlines()[-1] if answer else "")
        if found is None:
            raise SubmitError(f"sbatch answered {answer!r} instead of a job number")
        return found.group(1)

    def find(self, run: Run) -> str | None:
        """Look for a job whose batch script is the one of the run."""
        script = str(layout.batch_file(run.folder, run.jobndx))
        if not layout.batch_file(run.folder, run.jobndx).exists():
            return None
        for line in self._command("squeue", "-h", "-t", "all", "--me", "-o", "%A|%o").splitlines():
            number, _, command = line.partition("|")
            if command.strip() == script:
                return number.strip()
        return None

    def poll(self, runs: Sequence[Run]) -> Mapping[Run, Sighting]:
        """Ask squeue about all jobs at once, and scontrol about those that ended."""
        listed: dict[str, tuple[str, str]] = {}
        for line in self._command(
            "squeue", "-h", "-t", "all", "--me", "-o", "%A|%T|%r"
        ).splitlines():
            number, state, reason = (*line.split("|", 2), "", "")[:3]
            listed[number.strip()] = (state.strip(), reason.strip())
        return {run: self._sight(run, listed.get(run.native_id)) for run in runs}

    def _sight(self, run: Run, seen: tuple[str, str] | None) -> Sighting:
        state, reason = seen or ("", "")
        if state in QUEUED and FAILED_TO_LAUNCH.search(reason):
            # It would wait for an administrator for ever.
            self.cancel([run], force=False)
            return Sighting(JobState.FAILED, reason)
        if state in QUEUED:
            return Sighting(JobState.QUEUED, reason)
        if state in ACTIVE:
            return Sighting(JobState.ACTIVE)
        return self._ended(run.native_id)

    def _ended(self, number: str) -> Sighting:
        """Return how a job ended, from the controller's memory or the accounting."""
        state, code = self._from_controller(number) or self._from_accounting(number) or ("", "")
        word = state.split(" ")[0].rstrip("+")
        if not word:
            return Sighting(JobState.FAILED, "unknown to the batch system")
        if word in QUEUED | ACTIVE:
            # It changed since squeue looked.
            return Sighting(JobState.ACTIVE if word in ACTIVE else JobState.QUEUED)
        if word == "COMPLETED":
            return Sighting(JobState.COMPLETED)
        if word == "CANCELLED":
            return Sighting(JobState.CANCELED)
        exit_code, _, by_signal = code.partition(":")
        if word == "FAILED" and by_signal not in {"", "0"}:
            return Sighting(JobState.FAILED, f"{word} by signal {by_signal}")
        return Sighting(JobState.FAILED, f"{word} {exit_code}" if word == "FAILED" else word)

    def _from_controller(self, number: str) -> tuple[str, str] | None:
        try:
            text = self._command("scontrol", "show", "job", "-o", number)
        except SchedulerError as error:
            if NOT_KNOWN.search(str(error)):
                return None
            raise
        fields = dict(re.findall(r"(?:^|\s)(JobState|ExitCode)=(\S*)", text))
        return fields.get("JobState", ""), fields.get("ExitCode", "")

    def _from_accounting(self, number: str) -> tuple[str, str] | None:
        if shutil.which("sacct") is None:
            return None
        try:
            text = self._command("sacct", "-X", "-P", "-n", "-j", number, "-o", "State,ExitCode")
        except SchedulerError as error:
            # Sites without accounting have the command all the same.
            logger.info("accounting_unavailable", extra={"detail": str(error)})
            return None
        line = text.strip().splitlines()[-1] if text.strip() else ""
        state, _, code = line.partition("|")
        return (state, code) if state else None

    def cancel(self, runs: Sequence[Run], *, force: bool) -> None:
        """Send scancel; `force` also kills a batch shell that ignores it."""
        numbers = [run.native_id for run in runs if run.native_id]
        kind = ["--signal=KILL", "--full"] if force else []
        for some in _portions(numbers):
            try:
                self._command("scancel", *kind, *some)
            except SchedulerError as error:
                if not re.search(r"Invalid job id|already (completing|completed)", str(error)):
                    raise

    def tidy(self) -> None:
        """Do nothing: the cluster looks after its own processes."""

    def status(self) -> str | None:
        """Return what the last command failed with; None after a success."""
        return self._problem

    def _command(self, name: str, *arguments: str, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """Run a command of SLURM and return its stdout; raises `SchedulerError`."""
        variables = environment.inherited(os.environ)
        if self._conf:
            variables["SLURM_CONF"] = self._conf
        try:
            done = subprocess.run(
                [name, *arguments],
                env=variables,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            self._problem = f"{name} timed out after {timeout_s:g} s"
            raise SchedulerError(self._problem) from None
        except OSError as error:
            self._problem = f"cannot run {name}: {error.strerror}"
            raise SchedulerError(self._problem) from error
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or f"{name} ended with {done.returncode}"
            self._problem = said if UNREACHABLE.search(said) else None
            raise SchedulerError(said)
        self._problem = None
        return done.stdout


def _portions(numbers: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(numbers), IDS_AT_ONCE):
        yield numbers[start : start + IDS_AT_ONCE]
