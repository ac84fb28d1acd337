"""Documents are read strictly, and within bounds of memory and time."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lclstream.core import documents
from lclstream.core.documents import MAX_BYTES, MAX_DEPTH, parse_document, read_document
from lclstream.core.errors import InvalidConfigError


def refused(text: str, *, json_only: bool = False) -> str:
    """Return why a document is refused."""
    with pytest.raises(InvalidConfigError) as caught:
        parse_document(text, "f", json_only=json_only)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix("f is not valid YAML or JSON: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("3", 3),
        ("\ufeffa: 1", {"a": 1}),
        ("{a: [1, 2]}", {"a": [1, 2]}),
        ('{"a": [1, 2]}', {"a": [1, 2]}),
        ('{"a":\t1}', {"a": 1}),
        ("b: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}", {"b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}),
        ("a: &a [1]\nb: [*a, *a]", {"a": [1], "b": [[1], [1]]}),
    ],
)  # fmt: skip
def test_what_both_languages_allow(text: str, value: Any) -> None:
    assert parse_document(text, "f") == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is written twice in one mapping"),
        ("x: {a: 1, a: 1}", "line 1, column 11: the key 'a' is written twice in one mapping"),
        ('{"x": {"a": 1, "a": 1}}', "the key 'a' is written twice in one mapping"),
        ("a: [1", "line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a:\n\tb: 1", "line 2, column 1: found character '\\t' that cannot start any token;"
         " indent with spaces"),
        ("n: {{ size }} # 1", "line 1, column 5: found unhashable key; this looks like a template"
         " that has not been filled in"),
        ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document in the stream, but found"
         " another document"),
        ("a: 2024-13-45", "line 1, column 4: '2024-13-45' is not a valid timestamp; text can be put"
         " in quotes"),
        ("a: !!bool x", "line 1, column 4: 'x' is not a valid bool; text can be put in quotes"),
        ("a: !!int ''", "line 1, column 4: '' is not a valid int; text can be put in quotes"),
        ("a: !!python/name:os.system", "line 1, column 4: could not determine a constructor for the"
         " tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("a: 1" + "0" * 200, "line 1, column 4: a number or date of more than 100 characters"),
        ("&a {x: *a}", "line 1, column 1: an alias stands for something that it is itself a part"
         " of"),
        ('a: "\\ud800"', "line 1, column 4: '\\ud800' is not Unicode text"),
        ('{"a": "\\ud800"}', "'\\ud800' is not Unicode text"),
        ('{"\\ud800": 1}', "'\\ud800' is not Unicode text"),
        ("a: \0", "unacceptable character #x0000: special characters are not allowed in"
         ' "<unicode string>", position 3'),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, reason: str) -> None:
    assert refused(text) == reason


def test_a_json_file_is_json() -> None:
    assert refused("{a: 1}", json_only=True) == (
        "line 1, column 2: Expecting property name enclosed in double quotes"
    )


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    return opening * levels + closing * levels


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ("{a: ", "}")])
def test_depth_is_bounded(opening: str, closing: str) -> None:
    assert f"nested deeper than {MAX_DEPTH} levels" in refused(nested(100, opening, closing))
    assert f"nested deeper than {MAX_DEPTH} levels" in refused(nested(100_000, opening, closing))


def test_depth_that_only_aliases_make_is_bounded() -> None:
    lines = ["a0: &a0 [1]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 100))]
    assert refused("\n".join(lines)).endswith("nested deeper than 50 levels")


BILLION = "\n".join(
    ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
)
MERGED = "\n".join(
    ["a0: &a0 {k: 1}"]
    + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}" for i in range(1, 40)]
)


@pytest.mark.parametrize("text", [BILLION, MERGED], ids=["aliases", "merges"])
def test_what_unfolds_without_end_is_refused(text: str) -> None:
    assert refused(text).endswith("unfolds to more than 100000 values")


@pytest.mark.parametrize("opening", ["[1", '{"a": [1'])
def test_the_number_of_values_is_bounded(opening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_VALUES", 1000)
    text = opening + ",1" * 1200 + ("]}" if opening[0] == "{" else "]")
    assert refused(text).endswith("more than 100000 values")
    assert refused(text.replace("1", "x")).endswith("more than 100000 values")


def test_size_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES * 1000)
    with pytest.raises(InvalidConfigError, match=r"large\.yaml: larger than 1 MiB$"):
        read_document(path)
    with pytest.raises(InvalidConfigError, match=r"^cannot read /dev/zero: larger than 1 MiB$"):
        read_document(Path("/dev/zero"))


def test_memory_is_bounded() -> None:
    """A process that may take 300 MB refuses what would unfold to more."""
    code = (
        "import sys\n"
        "from lclstream.core.documents import parse_document\n"
        "from lclstream.core.errors import InvalidConfigError\n"
        "try: parse_document(sys.stdin.read(), 'f')\n"
        "except InvalidConfigError: print('refused')"
    )
    for text in (BILLION, MERGED, "[" * MAX_BYTES, "{a: " * (MAX_BYTES // 4)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20)),
        )
        assert done.stdout == "refused\n", done.stderr


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=50)
@given(DOCUMENTS)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert parse_document(json.dumps(value), "f") == value
    assert parse_document(yaml.safe_dump(value), "f") == value


@given(st.text(alphabet=st.sampled_from("{}[]:,&*!|>'\"%@`#?-<ab01. \n\t"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        value = parse_document(text, "f")
    except InvalidConfigError:
        return
    # JSON allows a little that YAML does not. Else what is read is what YAML says.
    try:
        json.loads(text)
    except ValueError:
        assert repr(value) == repr(yaml.safe_load(text))
