"""What a job inherits: a small known part of the service's environment, never its secrets.

`inherit_environment: true` gives a job the variables below; a service's own variables
(tokens, addresses of databases, `LCLSTREAM_*`) are not among them. Variables of the batch
system are its own words to the job, and the job gets them in any case: without them `srun`
could not find the allocation that it runs in.
"""

from collections.abc import Mapping

NAMES = frozenset(
    {
        "HOME", "LANG", "LANGUAGE", "LOGNAME", "MODULEPATH", "MODULESHOME", "PATH", "SHELL",
        "TMPDIR", "TZ", "USER",
    }
)  # fmt: skip
PREFIXES = ("LC_", "LMOD_")
BATCH_PREFIXES = ("SLURM", "PMI_")
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of a service's environment that its jobs may have."""
    kept = {
        name: value
        for name, value in environment.items()
        if name in NAMES or name.startswith(PREFIXES)
    }
    kept.setdefault("PATH", DEFAULT_PATH)
    return kept


def of_batch_system(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a batch system told the process that runs the job."""
    return {n: value for n, value in environment.items() if n.startswith(BATCH_PREFIXES)}
