"""Who is who in the demo: two facilities, each with an authority of its own.

S3DF runs the transfers service, the logbook and Airflow; the HPC centre runs jobs. Each service
trusts its own authority, and the other's only where the two talk to each other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lclstream.identity.authority import Authority

LOOPBACK = ("127.0.0.1", "localhost")

OPERATOR = "operator"
"""Login of the person who watches the demo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Identity folders of everybody who takes part."""

    authority: Path
    """Folder of the S3DF authority, which also signs the identities of jobs."""
    s3df_jobs: Path
    hpc_jobs: Path
    transfers: Path
    elog: Path
    watcher: Path
    airflow: Path
    """What Airflow's operators show."""
    airflow_web: Path
    """What Airflow's own web server shows."""
    operator: Path


def create_identities(folder: Path) -> Identities:
    """Make both authorities and all identities below a folder."""
    s3df = Authority.create(folder / "s3df-authority", "S3DF")
    hpc = Authority.create(folder / "hpc-authority", "HPC centre")

    def service(issuer: Authority, name: str, trusted: Iterable[Authority]) -> Path:
        place = folder / name
        issuer.issue_service(place, name, LOOPBACK)
        (place / "ca.crt").write_bytes(b"".join(each.certificate_pem for each in trusted))
        return place

    s3df.issue_user(folder / OPERATOR, "Demo Operator", OPERATOR)
    return Identities(
        authority=folder / "s3df-authority",
        s3df_jobs=service(s3df, "s3df-jobs", [s3df]),
        # It is called by, and calls back, the transfers service at S3DF.
        hpc_jobs=service(hpc, "hpc-jobs", [hpc, s3df]),
        transfers=service(s3df, "transfers", [s3df, hpc]),
        elog=service(s3df, "elog", [s3df]),
        watcher=service(s3df, "watcher", [s3df]),
        airflow=service(s3df, "airflow", [s3df]),
        airflow_web=service(s3df, "airflow-web", [s3df]),
        operator=folder / OPERATOR,
    )
