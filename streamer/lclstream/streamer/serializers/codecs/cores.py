"""How many processors this rank may use."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

# Launcher's variable -> how many ranks it has started on this machine. SLURM writes `4` or
# `4(x2),3`, and sets its variables also where only one process runs, outside of a step.
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE")
CGROUPS = Path("/sys/fs/cgroup")


def cores_of_rank(
    environment: Mapping[str, str] | None = None, cgroups: Path = CGROUPS, membership: str = ""
) -> int:
    """Return the number of processors that this rank has to itself, at least 1.

    That is what SLURM has given each task; else what the scheduler lets this process run on,
    shared with the other ranks of this machine where the launcher bound none of them. A limit
    of the control groups (containers, batch systems) holds in any case.

    Args:
        environment: in place of the process's own.
        cgroups: where the control groups are.
        membership: what to read in place of `/proc/self/cgroup`.
    """
    values = os.environ if environment is None else environment
    allowed = len(os.sched_getaffinity(0))
    given = _number(values.get("SLURM_CPUS_PER_TASK"))
    neighbours = max(_number(values.get(name)) for name in _LOCAL_RANKS)
    # Of the machine, or of the job on it: then nobody has divided them yet.
    is_shared = allowed in (os.cpu_count(), _number(values.get("SLURM_CPUS_ON_NODE")))
    if given:
        cores = min(allowed, given)
    elif is_shared:
        cores = allowed // max(neighbours, 1)
    else:
        cores = allowed
    return max(1, min([cores, *_quotas(cgroups, membership)]))


def _quotas(cgroups: Path, membership: str) -> Iterator[int]:
    """Yield every limit on processor time that a control group above us sets, in processors."""
    try:
        lines = (membership or Path("/proc/self/cgroup").read_text()).splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct"):
            root = cgroups / controllers
            folder = root / path.strip("/")
            while folder.is_relative_to(root):
                yield from _quota(folder)
                folder = folder.parent


def _quota(folder: Path) -> Iterator[int]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return
    # `max` and -1 mean no limit.
    if quota.isdigit() and period.isdigit() and int(period):
        yield max(1, int(quota) // int(period))


def _number(text: str | None) -> int:
    """Return the number that a text begins with, 0 if there is none."""
    digits = re.match(r"\d+", text or "")
    return int(digits[0]) if digits else 0
