"""The environment in which psana2 itself runs our streamer, made once; see `oracles`."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.oracles import oracle

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT.parent / "shared/data/mfx101332224_r0007_jungfrau05M.xtc2"

# mpich is the library that psana's mpi4py wants to find; kerberos would have to be compiled and
# only serves to log in at SLAC. The rest is what our streamer imports.
REQUIREMENTS = [
    "psana==4.3.4", "mpich", "cryptography", "h11", "hdf5plugin", "httpx", "pydantic>=2", "pynng",
    "pyyaml", "pyzmq", "xxhash",
]  # fmt: skip
WITHOUT = ["pykerberos"]
WHEELS = {(3, 11), (3, 12), (3, 13)}
COMPONENTS = ("core", "identity", "buffer", "streamer")


def psana_python() -> Path:
    """Return the Python of an environment with psana2 and what our streamer needs."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip(f"psana has no wheel for {sys.platform} {platform.machine()}")
    if sys.version_info[:2] not in WHEELS:
        pytest.skip(f"psana has no wheel for Python {platform.python_version()}")
    return oracle("psana_streamer", REQUIREMENTS, without=WITHOUT)


def psana_environment(python: Path, folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment variables for a process there.

    Args:
        python: what `psana_python` returned.
        folder: where a stand-in for kerberos is put, which nothing here uses.
        variables: further variables.
    """
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    (stubs / "kerberos.py").touch()
    paths = [str(stubs), *(str(ROOT / each) for each in COMPONENTS)]
    return {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "LCLS_CALIB_HTTP": "http://127.0.0.1:9",
        **variables,
    }


def tool(python: Path, name: str) -> Path:
    """Return a program that comes with psana2."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    path = python.parents[1] / "lib" / version / "site-packages" / "bin" / name
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Dump:
    """What one rank of a source gave; see `source_dump`."""

    archive: Mapping[str, Any]

    @property
    def events(self) -> list[list[int]]:
        """Index, time stamp, run, time stamp of the run, and step of each event."""
        found: list[list[int]] = self.archive["events"].tolist()
        return found

    @property
    def error(self) -> str:
        """What ended it, empty when nothing did."""
        return str(self.archive["error"])

    @property
    def log(self) -> list[str]:
        """What was logged."""
        return [str(line) for line in self.archive["log"]]

    def reading(self, event: int, number: int) -> Any:
        """Return a reading of an event, None when it was missing."""
        return self.archive.get(f"{event}/{number}")


def dump(
    python: Path,
    folder: Path,
    requests: Sequence[Mapping[str, Any]],
    ranks: int = 1,
    **variables: str,
) -> list[list[Dump]]:
    """Return what sources give in the environment of psana2, by request and rank.

    Args:
        python: what `psana_python` returned.
        folder: for files on the way.
        requests: see `source_dump`; without `out`.
        ranks: how many processes.
        variables: of the environment.
    """
    parts = [{**each, "out": str(folder / f"dump{n}")} for n, each in enumerate(requests)]
    request = folder / "request.json"
    request.write_text(json.dumps(parts))
    launcher = ["mpiexec", "-launcher", "fork", "-n", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [*launcher, str(python), "-P", str(ROOT / "tests/helpers/source_dump.py"), str(request)],
        env=psana_environment(python, folder, **variables),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [[_load(Path(f"{part['out']}.{rank}.npz")) for rank in range(ranks)] for part in parts]


def _load(path: Path) -> Dump:
    with np.load(path, allow_pickle=False) as archive:
        return Dump(dict(archive))
