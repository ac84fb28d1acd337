"""The streamer as a job of a real SLURM cluster, its ranks started by srun and by mpiexec."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml
from tests.streamer.conftest import wait_until

from lclstream.demo.slurm import SlurmCluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

JOB_S = 120


@pytest.mark.parametrize("launcher", ["srun -n 3", "mpiexec -launcher fork -n 3"])
def test_ranks_of_a_job_share_the_events(
    document: dict[str, Any], tmp_path: Path, launcher: str
) -> None:
    reason = SlurmCluster.available()
    if reason:
        pytest.skip(reason)
    handler = {"type": "BinaryFileWritingDataHandler", "write_directory": str(tmp_path / "out")}
    config = tmp_path / "lclstreamer.yaml"
    config.write_text(yaml.safe_dump(document | {"data_handlers": [handler]}))
    command = f"{launcher} {sys.executable} -m lclstream.streamer --config {config}"
    script, log, done = (tmp_path / name for name in ("script", "log", "done"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    end = f"echo $? > {done}.new && mv {done}.new {done}"
    script.write_text(f"#!/bin/sh\nexport PATH={path}\n{command}\n{end}\n")
    with SlurmCluster("streamer", tmp_path / "slurm", nodes=1, cpus=4) as cluster:
        job = ["sbatch", "--ntasks=3", f"--output={log}", str(script)]
        subprocess.run(job, env=os.environ | cluster.environment, cwd=tmp_path, check=True)
        wait_until(done.exists, JOB_S)
    assert done.read_text() == "0\n", log.read_text()
    events: list[int] = []
    ranks = set()
    for path_of_file in (tmp_path / "out").glob("*.h5"):
        with h5py.File(path_of_file) as file:
            events += file["lclstream/event_index"][...].tolist()
            ranks.add(int(file["lclstream"].attrs["rank"]))
    assert sorted(events) == list(range(20)), log.read_text()
    assert ranks == {0, 1, 2}
