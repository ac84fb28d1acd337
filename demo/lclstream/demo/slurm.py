"""A real SLURM cluster on this host: slurmctld, one slurmd a node, and their own munged.

Everything is on 127.0.0.1, with free ports, without systemd, cgroups and databases, as root
or as an ordinary user. Several clusters run side by side; clients choose one by SLURM_CONF.

What differs from a machine room: processes of a job that call setsid can escape scancel
(`proctrack/pgid`), nodes claim more CPUs than the host may have, and a finished job stays
visible to squeue for an hour.
"""

import getpass
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from lclstream.core.errors import BackendError, UnavailableError

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
PACKAGES = "slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins"
SYSTEM_PATHS = ("/usr/sbin", "/sbin")

START_TIMEOUT_S = 20.0
"""All of it takes under a second on a quiet machine."""
STOP_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 1.5
"""What jobs get to end by themselves when the cluster stops; then they are killed."""
NODE_TIMEOUT_S = 1.0
"""A slurmd waits for its steps, which may wait for zombies; it has nothing to lose."""
ATTEMPTS = 3
POLL_S = 0.02
DAEMONS = frozenset({"munged", "slurmctld", "slurmd", "slurmstepd"})
CGROUPS = Path("/sys/fs/cgroup")
"""Debian's slurmd does not start without, though it is told to use none."""
CGROUP_SWITCH = (23, 11)
"""First release that can do without control groups, and has to be told."""

# Below the ports that the kernel gives to outgoing connections.
PORTS = range(10_000, 32_000)
# A Unix socket's path may have 107 characters; slurmd adds node, job and step.
LONGEST_PATH = 60


class SlurmCluster:
    """A cluster between `start` and `stop`; a context manager.

    Resource handling: owns its daemons, every process of a job on it, and a temporary folder
    for sockets. `stop` ends all of them, also after a failed start. The folder `base` stays,
    with the logs and the state: job numbers go on at the next start.

    Error handling: `start` raises UnavailableError with the daemons' last words.
    """

    def __init__(
        self, name: str, base: Path, port_base: int = 0, nodes: int = 2, cpus: int = 4
    ) -> None:
        """Describe the cluster.

        Args:
            name: name of the cluster; its nodes are called `<name>1`, `<name>2`, ...
            base: folder for state and logs, made when missing.
            port_base: first of `nodes + 1` ports; 0 takes free ones.
            nodes: number of nodes.
            cpus: what each node claims to have.
        """
        self.name = name
        self.base = base
        self.nodes = [f"{name}{number}" for number in range(1, nodes + 1)]
        self.cpus = cpus
        self._port_base = port_base
        self._ports: list[int] = []
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._sockets: Path | None = None

    @staticmethod
    def available() -> str | None:
        """Return why no cluster can run here; None when it can."""
        missing = [name for name in PROGRAMS if _which(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed (Debian: apt-get install {PACKAGES})"
        if not CGROUPS.is_mount():
            return f"nothing is mounted at {CGROUPS}, where slurmd looks for control groups"
        return None

    @property
    def conf(self) -> Path:
        """Path of slurm.conf."""
        return self.base / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make SLURM's commands talk to this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- start

    def start(self) -> None:
        """Start the daemons and wait until every node takes jobs."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start()
            except UnavailableError as error:
                # Somebody may take a free port before the daemon does.
                taken = "Address already in use" in str(error)
                self.stop()
                if not taken or self._port_base or attempt == ATTEMPTS:
                    raise
            else:
                return

    def _start(self) -> None:
        problem = self.available()
        if problem:
            raise UnavailableError(f"no SLURM here: {problem}")
        for folder in ("state", "log"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        self._sockets = self._socket_folder()
        self._ports = self._choose_ports()
        self.conf.write_text(self._configuration())
        cgroup = self.conf.with_name("cgroup.conf")
        cgroup.unlink(missing_ok=True)
        if self._version() >= CGROUP_SWITCH:
            # Newer releases look for a control group otherwise; older ones know no such plug-in.
            cgroup.write_text("CgroupPlugin=disabled\n")
        self._start_munged()
        self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        for node in self.nodes:
            (self._sockets / node).mkdir()
            self._spawn(node, "slurmd", "-D", "-f", str(self.conf), "-N", node)
        self._wait(self._is_ready, "the nodes to take jobs")

    def _socket_folder(self) -> Path:
        """Make a folder whose path is short enough for sockets: below `base` if that is."""
        inside = self.base / "run"
        if len(str(inside)) <= LONGEST_PATH:
            inside.mkdir(mode=0o700, exist_ok=True)
            return inside
        for place in (tempfile.gettempdir(), "/tmp"):  # noqa: S108
            made = Path(tempfile.mkdtemp(prefix="slurm-", dir=place))
            if len(str(made)) <= LONGEST_PATH:
                return made
            made.rmdir()
        raise UnavailableError(f"no path is short enough for Unix sockets: {inside}")

    def _version(self) -> tuple[int, int]:
        """Return the release of SLURM, such as (22, 5)."""
        found = re.search(r"(\d+)\.(\d+)", self._ask("slurmctld", "-V") or "")
        return (int(found.group(1)), int(found.group(2))) if found else (0, 0)

    def _choose_ports(self) -> list[int]:
        if self._port_base:
            return list(range(self._port_base, self._port_base + len(self.nodes) + 1))
        return free_ports(len(self.nodes) + 1)

    def _start_munged(self) -> None:
        key = self.base / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(128))
        place = self._place("munge.sock")
        log = self.base / "log"
        options = {
            "socket": place,
            "key-file": key,
            "pid-file": self._place("munged.pid"),
            "log-file": log / "munged.log",
            "seed-file": self._place("munged.seed"),
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        self._spawn("munged", "munged", "--foreground", "--force", *arguments)
        self._wait(lambda: self._succeeds("munge", "-n", "-S", str(place)), "munged")

    def _place(self, name: str) -> Path:
        if self._sockets is None:
            raise BackendError(f"cluster {self.name} was not started")
        return self._sockets / name

    def _configuration(self) -> str:
        host = socket.gethostname().partition(".")[0]
        user, log = getpass.getuser(), self.base / "log"
        lines = {
            "ClusterName": self.name,
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": self._ports[0],
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            "AuthInfo": f"socket={self._place('munge.sock')}",
            # Else every daemon listens on all addresses.
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "StateSaveLocation": self.base / "state",
            "SlurmdSpoolDir": self._place("%n"),
            "SlurmctldPidFile": self._place("slurmctld.pid"),
            "SlurmdPidFile": self._place("slurmd.%n.pid"),
            "SlurmctldLogFile": log / "slurmctld.log",
            "SlurmdLogFile": log / "slurmd.%n.log",
            "ProctrackType": "proctrack/pgid",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": "task=1",
            "SelectType": "select/cons_tres",
            # With memory each job would take all of a node's.
            "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides",
            "PropagateResourceLimits": "NONE",
            "MpiDefault": "none",
            "ReturnToService": 2,
            "KillWait": 3,
            "MinJobAge": 3600,
            "MailProg": "/bin/true",
            "SchedulerParameters": (
                "batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2"
            ),
            "SlurmctldTimeout": 30,
            "SlurmdTimeout": 60,
            "AccountingStorageType": "accounting_storage/none",
        }
        text = "".join(f"{name}={value}\n" for name, value in lines.items())
        for node, port in zip(self.nodes, self._ports[1:], strict=True):
            text += (
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
                f"CPUs={self.cpus} RealMemory=4000 State=UNKNOWN\n"
            )
        return text + "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        path = _which(program)
        if path is None:
            raise UnavailableError(f"{program} is not installed")
        # What a daemon says before it has opened its log, and why it dies.
        with (self.base / "log" / f"{name}.out").open("wb") as output:
            self._running[name] = subprocess.Popen(
                [path, *arguments],
                env=os.environ | self.environment,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C in the terminal is for us; we stop them in order.
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        # A controller that comes back believes that its nodes are as they were.
        if not all(_listens(port) for port in self._ports):
            return False
        idle = self._ask("sinfo", "-h", "-N", "-t", "idle,mixed,allocated", "-o", "%N")
        return idle is not None and set(self.nodes) <= set(idle.split())

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while not condition():
            ended = [name for name, process in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() > end:
                why = f"{', '.join(ended)} ended" if ended else "timed out"
                words = "\n".join(self.last_words(name) for name in ended or self._running)
                raise UnavailableError(f"cluster {self.name} waited for {what}: {why}\n{words}")
            time.sleep(POLL_S)

    def last_words(self, name: str, lines: int = 10) -> str:
        """Return the end of what a daemon printed."""
        output = self.base / "log" / f"{name}.out"
        text = output.read_text(errors="replace") if output.exists() else ""
        return "\n".join(f"{name}: {line}" for line in text.splitlines()[-lines:])

    def _ask(self, program: str, *arguments: str, timeout_s: float = 5.0) -> str | None:
        """Return what a command printed; None when it failed or took too long."""
        try:
            done = subprocess.run(
                [_which(program) or program, *arguments],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        return done.stdout if done.returncode == 0 else None

    def _succeeds(self, program: str, *arguments: str) -> bool:
        return self._ask(program, *arguments) is not None

    # ---- stop

    def stop(self) -> None:
        """Cancel all jobs and end every process of the cluster; may be called again."""
        if self._is_running("slurmctld"):
            self._cancel_jobs()
        # The nodes first, while the controller still answers them.
        self._end(self.nodes, NODE_TIMEOUT_S)
        self._end(["slurmctld"])
        self._end(["munged"])
        self._kill_leftovers()
        if self._sockets is not None:
            shutil.rmtree(self._sockets)
            self._sockets = None

    def _is_running(self, name: str) -> bool:
        process = self._running.get(name)
        return process is not None and process.poll() is None

    def _cancel_jobs(self) -> None:
        """Cancel every job and wait, within bounds, until none of its processes is left."""
        jobs = self._ask("squeue", "-h", "-o", "%A")
        if not jobs:
            return
        self._ask("scancel", *jobs.split())
        end = time.monotonic() + CANCEL_TIMEOUT_S
        # Not until SLURM has seen it: where orphans are reaped late that takes long.
        while self._job_processes() and time.monotonic() < end:
            time.sleep(POLL_S)
        _kill(self._job_processes())

    def _end(self, names: Iterable[str], timeout_s: float = STOP_TIMEOUT_S) -> None:
        found = [self._running[name] for name in names if name in self._running]
        for process in found:
            process.terminate()
        end = time.monotonic() + timeout_s
        for process in found:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in names:
            self._running.pop(name, None)

    def _kill_leftovers(self) -> None:
        """Kill step daemons and processes of jobs that outlived the daemons."""
        end = time.monotonic() + STOP_TIMEOUT_S
        while left := self.processes():
            _kill(left)
            if time.monotonic() > end:
                raise BackendError(f"cluster {self.name} cannot end processes {left}")
            time.sleep(POLL_S)

    def pid(self, name: str) -> int:
        """Return the process of a daemon: `munged`, `slurmctld` or the name of a node."""
        return self._running[name].pid

    def processes(self) -> list[int]:
        """Return the living processes of the cluster: daemons, steps and jobs."""
        folders = (f"{self.base}/", *([f"{self._sockets}/"] if self._sockets else []))
        daemons = [pid for pid in _living() if _is_daemon_with(pid, folders)]
        return daemons + self._job_processes()

    def _job_processes(self) -> list[int]:
        variable = f"SLURM_CONF={self.conf}".encode()
        return [pid for pid in _living() if pid != os.getpid() and _is_in_job(pid, variable)]


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _living() -> Iterator[int]:
    """Yield the processes of this host without zombies: nobody can end those again."""
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and not re.search(
                r"^State:\s*[ZX]", (process / "status").read_text(errors="replace"), re.MULTILINE
            ):
                yield int(process.name)
        except (FileNotFoundError, ProcessLookupError):
            continue


def _is_daemon_with(pid: int, folders: tuple[str, ...]) -> bool:
    """Return whether a process is a daemon of SLURM that has a file in our folders open."""
    process = Path("/proc") / str(pid)
    try:
        if (process / "comm").read_text().strip() not in DAEMONS:
            return False
        return any(str(link.readlink()).startswith(folders) for link in (process / "fd").iterdir())
    except OSError:
        # Gone by now, or another user's.
        return False


def _is_in_job(pid: int, variable: bytes) -> bool:
    """Return whether a process runs inside a job of the cluster that a variable names."""
    try:
        found = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        # Gone by now, or another user's.
        return False
    return variable in found and any(each.startswith(b"SLURM_JOB_ID=") for each in found)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on at this moment."""
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            one = socket.socket()
            held.append(one)
            try:
                one.bind(("127.0.0.1", random.choice(PORTS)))  # noqa: S311
            except OSError:
                held.pop().close()
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _which(program: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_PATHS])
    return shutil.which(program, path=path)
