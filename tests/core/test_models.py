"""How a wrong configuration is reported."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, Field

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import StrictModel, load_file, parse


class Gzip(StrictModel):
    type: Literal["gzip"] = "gzip"
    level: int = Field(default=3, ge=0, le=9)


class Plain(StrictModel):
    type: Literal["plain"] = "plain"


class Job(StrictModel):
    name: str
    codec: Annotated[Gzip | Plain, Field(discriminator="type")] = Plain()
    steps: list[Gzip] = []
    sites: dict[str, Plain] = {}


def problems(data: object) -> tuple[str, ...]:
    with pytest.raises(InvalidConfigError) as caught:
        parse(Job, data, "job.yaml")
    return caught.value.problems


def test_all_faults_come_at_once_each_with_its_field() -> None:
    assert problems(
        {
            "codec": {"type": "gzip", "level": 30},
            "steps": [{"levl": 1}],
            "sites": {"olcf": {"x": 1}},
            "nme": "a",
        }
    ) == (
        "name: is required",
        "codec.level: input should be less than or equal to 9, got 30",
        "steps.0.levl: unknown field (did you mean 'level'?); allowed: level, type",
        "sites.olcf.x: unknown field; allowed: type",
        "nme: unknown field (did you mean 'name'?); allowed: codec, name, sites, steps",
    )


def test_wrong_type_lists_the_right_ones_and_a_guess() -> None:
    (problem,) = problems({"name": "a", "codec": {"type": "gzipp"}})
    assert problem == "codec.type: there is no 'gzipp' (did you mean 'gzip'?); allowed: gzip, plain"


def test_long_value_is_cut() -> None:
    (problem,) = problems({"name": ["x" * 500]})
    assert len(problem) < 200


def test_document_of_the_wrong_kind() -> None:
    assert problems([1]) == ("(whole document): should be a mapping of fields, got [1]",)


def test_models_never_change() -> None:
    job = parse(Job, {"name": "a"})
    with pytest.raises(ValueError, match="frozen"):
        setattr(job, "name", "b")  # noqa: B010


@pytest.mark.parametrize("name", ["job.yaml", "job.yml", "job.json"])
def test_yaml_and_json_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"name": "a", "codec": {"type": "gzip", "level": 1}}')
    assert load_file(Job, path) == Job(name="a", codec=Gzip(level=1))


def test_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("{}")
    with pytest.raises(InvalidConfigError, match=rf"^{path}: 1 problem\n  name: is required$"):
        load_file(Job, path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"a: [1", "is not valid YAML or JSON"),
        (b"a: !!python/object/apply:os.getpid []", "is not valid YAML or JSON"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidConfigError, match=reason):
        load_file(Job, path)


def test_secret_is_not_shown() -> None:
    class Login(StrictModel):
        password: str

    with pytest.raises(InvalidConfigError) as caught:
        parse(Login, {"password": 4711})
    assert caught.value.problems == ("password: input should be a valid string",)


def test_of_very_many_faults_the_first_are_named() -> None:
    class Numbers(StrictModel):
        numbers: list[int]

    with pytest.raises(InvalidConfigError) as caught:
        parse(Numbers, {"numbers": ["x"] * 2000})
    assert len(caught.value.problems) == 101
    assert caught.value.problems[-1] == "... and 1900 more"


def test_a_number_that_python_does_not_write_out_can_be_refused() -> None:
    class Small(StrictModel):
        number: int = Field(lt=10)

    with pytest.raises(InvalidConfigError, match="got a very large int"):
        parse(Small, {"number": 1 << 100_000})


class Choosy(StrictModel):
    names: str | list[str] | None = None
    size: int | float | list[int] = 0
    inner: dict[str, Annotated[Gzip | Plain, Field(discriminator="type")]] = Field(
        default_factory=dict
    )
    pair: tuple[int, str] = (0, "")
    codec: Annotated[Gzip | Plain, Field(discriminator="type")] | None = None
    checked: Annotated[int, AfterValidator(lambda value: _refuse(value))] = 0


def _refuse(value: int) -> int:
    raise ValueError(f"URL {value} is not nice")


@pytest.mark.parametrize(
    ("written", "line"),
    [
        # Nobody wrote the member of a union that was tried, so it is in no path.
        ({"names": 3},
         "names: input should be a valid string, or input should be a valid list, got 3"),
        ({"names": ["a", 3]}, "names.1: input should be a valid string, got 3"),
        ({"size": "x"},
         "size: input should be a valid integer, unable to parse string as an integer, or input"
         " should be a valid number, unable to parse string as a number, or input should be a valid"
         " list, got 'x'"),
        ({"inner": {"a": {"type": "gzip", "level": 30}}},
         "inner.a.level: input should be less than or equal to 9, got 30"),
        ({"inner": {1: {"type": "plain"}}},
         "inner.1: a name must be text; put it in quotes, got 1"),
        ({"pair": [1, 2]}, "pair.1: input should be a valid string, got 2"),
        ({"codec": {"type": "gzip", "lvl": 3}},
         "codec.lvl: unknown field (did you mean 'level'?); allowed: level, type"),
        ({"codec": {}}, "codec.type: is required; allowed: gzip, plain"),
        ({"codec": "gzip"}, "codec: should be a mapping of fields, got 'gzip'"),
        ({"checked": 1}, "checked: URL 1 is not nice, got 1"),
        ({"a\nb": 1}, "'a\\nb': unknown field; allowed: checked, codec, inner, names, pair, size"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_with_its_place_in_the_document(written: object, line: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        parse(Choosy, written)
    assert caught.value.problems == (line,)
