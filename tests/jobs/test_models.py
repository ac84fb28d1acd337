import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from lclstream.core.errors import InvalidConfigError
from lclstream.jobs import config
from lclstream.jobs.models import BackendConfig, Callback, ExtraInfo, JobSpec, ResourceSpec
from lclstream.jobs.states import JobState

KEYS = [
    "name", "directory", "script", "environment", "inherit_environment", "resources", "backend",
    "attributes", "callback", "cb_headers", "cb_secret",
]  # fmt: skip
RESOURCES = [
    "duration", "node_count", "process_count", "processes_per_node", "cpu_cores_per_process",
    "gpu_cores_per_process", "exclusive_node_use",
]  # fmt: skip


def test_spec_has_the_keys_of_psik_in_its_order() -> None:
    written = json.loads(JobSpec(script="ls").model_dump_json())
    assert list(written) == KEYS
    assert list(written["resources"]) == RESOURCES


def test_extra_info_leaves_defaults_out() -> None:
    backend = BackendConfig(queue_name="milano", project_name="lcls:exp1")
    assert ExtraInfo(backend=backend).model_dump_json(exclude_defaults=True) == (
        '{"backend":{"queue_name":"milano","project_name":"lcls:exp1"}}'
    )
    assert ExtraInfo().model_dump_json(exclude_defaults=True) == "{}"


def test_callback_is_compact_json_in_order() -> None:
    told = Callback(jobid="1795210993.191", jobndx=1, state=JobState.QUEUED, info="7188")
    expected = '{"jobid":"1795210993.191","jobndx":1,"state":"queued","info":"7188"}'
    assert told.model_dump_json() == expected


def test_unknown_resource_is_ignored() -> None:
    assert ResourceSpec.model_validate({"memory": 5}) == ResourceSpec()


@pytest.mark.parametrize(
    "fields",
    [
        {"bogus": 1},
        {"name": "two\nlines"},
        {"script": "nul \x00 byte"},
        {"environment": {"A=B": "x"}},
        {"environment": {"A": "nul\x00"}},
        {"attributes": {"--comment": "two\nlines"}},
        {"cb_headers": {"Host": "elsewhere"}},
        {"cb_headers": {"X-A": "a\r\nX-B: b"}},
        {"cb_headers": {"X A": "a"}},
        {"cb_headers": {"X-A": "ä"}},
        {"resources": {"process_count": 2, "processes_per_node": 2}},
        {"resources": {"duration": 0}},
    ],
)
def test_what_no_job_may_say(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate({"script": "ls", **fields})


def test_secret_is_not_shown() -> None:
    assert "s3cret" not in repr(JobSpec.model_validate({"script": "ls", "cb_secret": "s3cret"}))


def test_psik_configuration_is_read_with_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "psik.json").write_text('{"prefix": "jobs"}')
    read = config.load(tmp_path / "psik.json")
    assert read.prefix == tmp_path / "jobs"
    assert read.backends == {"default": BackendConfig()}


def test_all_faults_of_a_configuration_are_named(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text("backends: {a: {type: lsf}}\nprot: 1\nport: 70000\n")
    with pytest.raises(InvalidConfigError) as caught:
        config.load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "prefix: is required" in text
    assert "allowed: local, slurm" in text
    assert "did you mean 'port'?" in text
    assert "70000" in text


def test_configuration_is_found_as_psik_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PSIK_CONFIG", raising=False)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    with pytest.raises(InvalidConfigError, match="no configuration"):
        config.find()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "psik.json").write_text("{}")
    assert config.find() == tmp_path / "etc" / "psik.json"
    monkeypatch.setenv("PSIK_CONFIG", "/else/where.json")
    assert config.find() == Path("/else/where.json")
    assert config.find(Path("given.json")) == Path("given.json")
