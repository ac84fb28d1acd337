"""Which of how many processes this one is.

Launchers say so in the environment; that costs nothing and needs no MPI library. mpi4py is
asked only on request: it takes a second to start.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lclstream.core.errors import InvalidConfigError

# Launcher -> its variables for rank and size. SLURM's are set in a batch script too, where
# only one process runs; that is why its step must be known as well.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", None),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", None),
    ("PMI_RANK", "PMI_SIZE", None),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Rank and number of ranks."""

    rank: int
    size: int


def place_from_environment(environment: Mapping[str, str] | None = None) -> Place:
    """Return what `mpiexec` or `srun` says, or the only rank when nothing launched us.

    A launcher that speaks PMIx alone tells the rank but not the size: then MPI is asked.

    Raises:
        InvalidConfigError: the launcher's variables make no sense.
    """
    values = os.environ if environment is None else environment
    for rank_name, size_name, condition in _LAUNCHERS:
        if rank_name not in values or size_name not in values:
            continue
        if condition is not None and condition not in values:
            continue
        rank, size = values[rank_name], values[size_name]
        if not (rank.isdigit() and size.isdigit() and int(rank) < int(size)):
            raise InvalidConfigError(
                f"{rank_name} must be less than {size_name}, got {rank!r} and {size!r}"
            )
        return Place(int(rank), int(size))
    return place_from_mpi() if "PMIX_RANK" in values else Place(0, 1)


def place_from_mpi() -> Place:
    """Return rank and size in MPI's world.

    Raises:
        InvalidConfigError: mpi4py is not installed.
    """
    world = _world()
    return Place(int(world.Get_rank()), int(world.Get_size()))


def world_of(place: Place) -> Any:
    """Return MPI's communicator of all ranks.

    Raises:
        InvalidConfigError: mpi4py is not installed, or knows of other ranks than the launcher.
    """
    world = _world()
    found = Place(int(world.Get_rank()), int(world.Get_size()))
    if found != place:
        raise InvalidConfigError(
            f"this is rank {place.rank} of {place.size}, but rank {found.rank} of {found.size} for"
            " mpi4py, whose MPI library the launcher does not know: start the ranks with the"
            " mpiexec of that library, or with srun --mpi=pmi2 or pmix"
        )
    return world


def _world() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InvalidConfigError(f"mpi4py cannot be used: {error}") from None
    return MPI.COMM_WORLD
