from pathlib import Path
from typing import Any

import pytest
from tests.elog.messages import job_message

from lclstream.core.errors import InvalidConfigError
from lclstream.elog.catalog import FileCatalog, started_by_hand
from lclstream.elog.config import load_config
from lclstream.elog.definitions import (
    WorkflowDefinition,
    from_logbook,
    is_ours,
    read_definitions,
)
from lclstream.elog.models import DefinitionDocument, JobDocument, Trigger

ONE = "name: one\ndag: stream\ntrigger: START_OF_RUN\nexperiments: ['mfx*']\n"
TWO = """
workflows:
  - {name: two, dag: stop, trigger: END_OF_RUN, parameters: {producers: 3}}
  - name: three
    dag: stream
    trigger: RUN_PARAM_IS_VALUE
    run_param_name: stream
    run_param_value: "on"
"""


def document(**fields: Any) -> DefinitionDocument:
    base = {"_id": "d1", "name": "theirs", "executable": "/x/lclstream-arp", "location": "S3DF"}
    return DefinitionDocument.model_validate(
        {**base, "trigger": "END_OF_RUN", "parameters": "--dag stream", **fields}
    )


def test_files_and_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ONE)
    (tmp_path / "b.yml").write_text(TWO)
    (tmp_path / "README.md").write_text("not a workflow")
    assert [each.name for each in read_definitions([tmp_path])] == ["one", "two", "three"]
    assert [each.name for each in read_definitions([tmp_path / "a.yaml"])] == ["one"]


def test_all_faults_of_all_files_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ONE.replace("START_OF_RUN", "START_OF_RUNS"))
    (tmp_path / "b.yaml").write_text(ONE.replace("dag:", "dagg:") + "trigger_: x\n")
    (tmp_path / "c.yaml").write_text(ONE)
    (tmp_path / "d.yaml").write_text(ONE)
    with pytest.raises(InvalidConfigError) as caught:
        read_definitions([tmp_path])
    text = str(caught.value)
    assert "a.yaml: 1 problem" in text
    assert "did you mean 'START_OF_RUN'?" in text
    assert "dagg: unknown field (did you mean 'dag'?)" in text
    assert "dag: is required" in text
    assert "d.yaml: name: 'one' is also in" in text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trigger": "ALL_FILES_TRANSFERRED"}, r"needs a location"),
        ({"trigger": "RUN_PARAM_IS_VALUE"}, r"needs run_param_name and run_param_value"),
        ({"dag": "a/b"}, r"dag"),
        ({"name": ""}, r"name"),
        ({"experiments": []}, r"experiments"),
        ({"parameters": {"a": float("nan")}}, r"parameters"),
    ],
)
def test_incomplete_definitions_are_refused(fields: dict[str, Any], reason: str) -> None:
    base = {"name": "n", "dag": "d", "trigger": "START_OF_RUN"}
    with pytest.raises(ValueError, match=reason):
        WorkflowDefinition.model_validate({**base, **fields})


@pytest.mark.parametrize(
    ("executable", "ours"),
    [
        ("/sdf/x/lclstream-arp", True),
        ("lclstream-arp", True),
        ("/sdf/x/other", False),
        ("/sdf/x/lclstream-arp/other", False),
        (None, False),
    ],
)
def test_the_executable_marks_what_is_ours(executable: str | None, *, ours: bool) -> None:
    assert is_ours(document(executable=executable), ["lclstream-arp"]) is ours


def test_a_definition_of_the_logbook_is_translated() -> None:
    line = "--dag=stream --set producers=3 --set 'name=a b'"
    found = from_logbook(document(parameters=line), "tst1", {})
    assert found.name == "theirs"
    assert found.trigger is Trigger.END_OF_RUN
    assert found.experiments == ("tst1",)
    assert found.parameters == {"producers": 3, "name": "a b"}


def test_a_definition_of_the_logbook_may_refer_to_ours(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text(TWO)
    templates = {each.name: each for each in read_definitions([tmp_path])}
    line = "--set consumers=2 --workflow two --set producers=5"
    found = from_logbook(document(parameters=line), "tst1", templates)
    assert found.dag == "stop"
    assert found.parameters == {"producers": 5, "consumers": 2}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"parameters": ""}, r"dag"),
        ({"parameters": "--dog x"}, r"cannot use '--dog' \(did you mean '--dag'\?\)"),
        ({"parameters": "--dag"}, r"cannot use '--dag'"),
        ({"parameters": "--partition=milano"}, r"cannot use '--partition'"),
        ({"parameters": "--dag 'x"}, r"No closing quotation"),
        ({"parameters": "--workflow tow"}, r"no workflow 'tow'"),
        ({"parameters": "--dag x --set 'a=['"}, r"flow"),
        ({"trigger": "AT_NOON"}, r"trigger"),
        ({"trigger": "RUN_PARAM_IS_VALUE"}, r"run_param_name"),
    ],
)
def test_a_definition_of_the_logbook_that_cannot_be_used_says_why(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidConfigError, match=reason) as caught:
        from_logbook(document(**fields), "tst1", {})
    assert "definition 'theirs' of tst1 in the logbook" in str(caught.value)


def job(**fields: Any) -> JobDocument:
    return JobDocument.model_validate(job_message(**fields)[1]["value"])


def test_a_person_starts_what_is_ours(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("name: by-hand\ndag: again\ntrigger: MANUAL\n")
    (tmp_path / "a.yaml").write_text(ONE)
    files = FileCatalog([tmp_path])
    ours = ("lclstream-arp",)
    marked = started_by_hand(job(), "tst1", files, ours)
    assert marked is not None
    assert (marked.dag, marked.trigger) == ("stream_on_run_start", Trigger.MANUAL)
    named = started_by_hand(job(name="by-hand", executable="/x/other"), "tst1", files, ours)
    assert named is not None
    assert named.dag == "again"
    # Not MANUAL, and not our executable: the real ARP starts it.
    assert started_by_hand(job(name="one", executable="/x/other"), "tst1", files, ours) is None
    assert started_by_hand(job(executable="/x/other"), "tst1", files, ours) is None


def test_changed_files_take_effect_and_bad_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lclstream.elog.catalog.FILES_CHECKED_S", 0.0)
    path = tmp_path / "a.yaml"
    path.write_text(ONE)
    files = FileCatalog([tmp_path])
    path.write_text(TWO)
    assert set(files.by_name()) == {"two", "three"}
    path.write_text("workflows: 7")
    assert set(files.by_name()) == {"two", "three"}
    assert "workflows" in files.error
    path.write_text(ONE + "\n")
    assert set(files.by_name()) == {"one"}
    assert files.error == ""


EXAMPLES = Path(__file__).parents[2] / "elog" / "examples"


def test_the_examples_can_be_used() -> None:
    config = load_config(EXAMPLES / "watch.yaml")
    [workflow] = read_definitions(config.workflows)
    assert workflow.concerns("mfx101332224")
    assert not workflow.concerns("cxi001")


def test_a_file_that_goes_while_we_look_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(ONE)
    monkeypatch.setattr("lclstream.elog.catalog.FILES_CHECKED_S", 0.0)
    files = FileCatalog([tmp_path])
    before = files.definitions()

    def gone(self: FileCatalog) -> tuple[()]:
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(FileCatalog, "_look", gone)
        assert files.definitions() == before
        assert str(path) in files.error
    assert files.definitions() == before
    assert files.error == ""
