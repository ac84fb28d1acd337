"""Rank and size as each launcher tells them."""

import subprocess
import sys

import pytest

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.rank import Place, place_from_environment, place_from_mpi


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place(0, 1)),
        ({"PMI_RANK": "2", "PMI_SIZE": "3"}, Place(2, 3)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, Place(1, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, Place(1, 2)),
        # The batch script itself is one process, however many tasks its job has.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, Place(0, 1)),
        # A step may have fewer tasks than its job.
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "8",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_STEP_ID": "0",
            },
            Place(0, 2),
        ),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, Place(1, 2)),
        # mpiexec within a step knows better.
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "2",
                "SLURM_STEP_ID": "0",
                "PMI_RANK": "3",
                "PMI_SIZE": "4",
            },
            Place(3, 4),
        ),
    ],
)
def test_launchers(environment: dict[str, str], place: Place) -> None:
    assert place_from_environment(environment) == place


def test_nonsense_is_refused() -> None:
    message = r"^PMI_RANK must be less than PMI_SIZE, got '3' and '3'$"
    with pytest.raises(InvalidConfigError, match=message):
        place_from_environment({"PMI_RANK": "3", "PMI_SIZE": "3"})


def test_a_launcher_that_tells_no_size_has_mpi_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lclstream.streamer.rank.place_from_mpi", lambda: Place(2, 5))
    assert place_from_environment({"PMIX_RANK": "2"}) == Place(2, 5)
    # One that tells it as well is believed.
    told = {"PMIX_RANK": "2", "SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_STEP_ID": "0"}
    assert place_from_environment(told) == Place(2, 3)


def test_mpi_alone_has_one_rank() -> None:
    pytest.importorskip("mpi4py")
    command = "from lclstream.streamer.rank import place_from_mpi; print(place_from_mpi())"
    output = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout
    assert output == "Place(rank=0, size=1)\n"


def test_mpi_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InvalidConfigError, match=r"^mpi4py cannot be used: "):
        place_from_mpi()
