"""Real clusters on loopback."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from lclstream.core.errors import UnavailableError
from lclstream.demo.slurm import SlurmCluster, free_ports

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(SlurmCluster.available() is not None, reason=str(SlurmCluster.available())),
]


def ask(cluster: SlurmCluster, *command: str) -> str:
    done = subprocess.run(
        command, env=os.environ | cluster.environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def soon(cluster: SlurmCluster, number: str, state: str) -> None:
    """Wait until a job is in a state."""
    end = time.monotonic() + 20
    while ask(cluster, "squeue", "-h", "-t", "all", "-j", number, "-o", "%T") != state:
        assert time.monotonic() < end, f"job {number} never was {state}"
        time.sleep(0.05)


def listeners(cluster: SlurmCluster) -> set[str]:
    """Return the addresses on which processes of a cluster listen."""
    inodes = set()
    for pid in cluster.processes():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
            except FileNotFoundError:
                continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = "0A"
    return {row[1].split(":")[0] for row in rows if row[3] == listening and row[9] in inodes}


def test_two_clusters_side_by_side_leave_nothing(tmp_path: Path) -> None:
    with (
        SlurmCluster("s3df", tmp_path / "s3df") as near,
        SlurmCluster("olcf", tmp_path / "olcf", nodes=1, cpus=2) as far,
    ):
        assert ask(near, "sinfo", "-h", "-o", "%D %c") == "2 4"
        assert ask(far, "sinfo", "-h", "-o", "%D %c") == "1 2"
        loopback = "0100007F"
        assert listeners(near) == listeners(far) == {loopback}
        output = tmp_path / "output"
        job = "srun hostname >/dev/null && echo $SLURM_CLUSTER_NAME"
        number = ask(near, "sbatch", "--parsable", "-o", str(output), "--wrap", job)
        # It ignores SIGTERM, and a part of it has left its process group.
        stubborn = "trap '' TERM; setsid sleep 1000 & sleep 1000; sleep 1000"
        other = ask(far, "sbatch", "--parsable", "-o", "/dev/null", "--wrap", stubborn)
        soon(near, number, "COMPLETED")
        soon(far, other, "RUNNING")
        assert output.read_text() == "s3df\n"
        mine = near.processes() + far.processes()
        # Two times munged, slurmctld and the nodes, and the job with its daemon.
        assert len(mine) >= 2 + 2 + 3 + 2
    assert near.processes() == far.processes() == []
    assert {pid for pid in mine if is_alive(pid)} == set()


def is_alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return fields[0] != "Z"


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    cluster = SlurmCluster("again", tmp_path, nodes=1)
    with cluster:
        first = int(ask(cluster, "sbatch", "--parsable", "-o", "/dev/null", "--wrap", "true"))
    with cluster:
        second = ask(cluster, "sbatch", "--parsable", "-o", "/dev/null", "--wrap", "true")
        soon(cluster, second, "COMPLETED")
        assert int(second) > first
    cluster.stop()


def test_failed_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        cluster = SlurmCluster("taken", tmp_path, port_base=port, nodes=1)
        with pytest.raises(UnavailableError, match="Address already in use"):
            cluster.__enter__()
    assert cluster.processes() == []


def test_stop_after_a_crash_of_the_controller(tmp_path: Path) -> None:
    with SlurmCluster("crash", tmp_path, nodes=1) as cluster:
        number = ask(cluster, "sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 1000")
        soon(cluster, number, "RUNNING")
        os.kill(cluster.pid("slurmctld"), signal.SIGKILL)
    assert cluster.processes() == []


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("lclstream.demo.slurm.SYSTEM_PATHS", ())
    reason = SlurmCluster.available()
    assert reason is not None
    assert "slurmctld" in reason
    assert "apt-get install" in reason
