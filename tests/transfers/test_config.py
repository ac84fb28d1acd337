from pathlib import Path
from typing import Any

import pytest
import yaml

from lclstream.core.errors import InvalidConfigError
from lclstream.transfers.config import SiteConfig, load_config
from lclstream.transfers.models import LimitsRequest, StartBody

SITE = {"name": "hpc", "jobs": "https://h:1"}
CONFIG = {"identity": "id", "authority": "ca", "database": "t.db", "sites": [SITE]}


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    write(tmp_path / "sites", "s3df.yaml", {**SITE, "name": "s3df"})
    path = write(tmp_path, "c.yaml", {**CONFIG, "sites": ["sites/s3df.yaml", SITE]})
    config, sites = load_config(path)
    assert config.identity == tmp_path / "id"
    assert config.database == str(tmp_path / "t.db")
    assert list(sites) == ["s3df", "hpc"]


def test_url_of_a_database_stays_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", {**CONFIG, "database": "postgresql://h/db"})
    assert load_config(path)[0].database == "postgresql://h/db"


def test_all_errors_of_a_site_file_at_once(tmp_path: Path) -> None:
    wrong = {
        "name": "s 3",
        "jobs": "http://h",
        "enviroment": {},
        "launcher": "srun -n {ranks} {nodes}",
        "resources": {"durtion": 3},
        "data_ports": "1-2-3",
        "environment": {"LCLSTREAM_URL": "x"},
    }
    site = write(tmp_path, "s.yaml", wrong)
    path = write(tmp_path, "c.yaml", {**CONFIG, "sites": ["s.yaml"]})
    with pytest.raises(InvalidConfigError) as caught:
        load_config(path)
    text = str(caught.value)
    assert text.startswith(f"{site}: 7 problems")
    for part in (
        "name: ",
        "jobs: ",
        "enviroment: unknown field (did you mean 'environment'?)",
        "only the placeholder {ranks} is known",
        "unknown field 'durtion' (did you mean 'duration'?)",
        "data_ports: ",
        "LCLSTREAM_URL is set by the service",
    ):
        assert part in text


def test_launcher_must_say_how_many() -> None:
    with pytest.raises(ValueError, match=r"must say \{ranks\}"):
        SiteConfig.model_validate({**SITE, "launcher": "mpiexec"})


def test_two_sites_with_one_name(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", {**CONFIG, "sites": [SITE, SITE]})
    with pytest.raises(InvalidConfigError, match="two sites are named 'hpc'"):
        load_config(path)


def test_a_request_only_lowers_limits(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", {**CONFIG, "limits": {"idle_s": 100, "total_s": 500}})
    config, _ = load_config(path)
    limits = config.effective_limits(LimitsRequest(idle_s=10, total_s=1e6, drain_s=7))
    assert (limits.idle_s, limits.total_s, limits.drain_s) == (10, 500, 7)
    assert limits.start_s == 600


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"role": "owner"}, "role"),
        ({"role": "consumer"}, "script"),
        ({"role": "consumer", "script": "x", "name": "../x"}, "name"),
        ({"role": "consumer", "script": "x", "count": 0}, "count"),
        ({"role": "consumer", "script": "x", "environment": {"LCLSTREAM_URL": "y"}}, "LCLSTREAM"),
        ({"role": "consumer", "script": "x", "environment": {"A B": "y"}}, "environment"),
        ({"role": "consumer", "script": "x", "resources": {"duration": 0}}, "duration"),
        ({"role": "buffer", "script": "x"}, "script"),
    ],
)
def test_start_requests_that_are_refused(body: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        StartBody.model_validate(body)
