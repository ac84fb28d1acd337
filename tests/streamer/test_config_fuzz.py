"""Whatever is in a configuration file, it is read, or refused with lines that a person can read.

With LCLSTREAM_SOAK=1 many more are tried; their number stands in docs/reference/configuration.md.
"""

import os
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.mutations import mutated, mutated_text

from lclstream.core.documents import read_document
from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters, load_parameters, parse_parameters
from lclstream.streamer.config.summary import expected_values, summary
from lclstream.streamer.config.writing import as_text, document_of

FOLDER = Path(__file__).parent / "configurations"
EXAMPLES = Path(__file__).parents[2] / "streamer" / "examples"
TEXTS = [path.read_text() for path in sorted([*FOLDER.glob("*.yaml"), *EXAMPLES.glob("*.yaml")])]
DOCUMENTS = [yaml.safe_load(text) for text in TEXTS]

SOAK = int(os.environ.get("LCLSTREAM_SOAK", "0"))
SOAK_INPUTS = 200_000
# A refusal is read by a person.
MAX_LINES = 250
MAX_MEMORY_KB = 200_000


def judged(read: Callable[[], Parameters]) -> bool:
    """Return whether something is accepted; a refusal must be one that a person can read."""
    refusal: InvalidConfigError | None = None
    try:
        parameters = read()
    except InvalidConfigError as error:
        refusal = error
    if refusal is not None:
        first, *lines = str(refusal).split("\n")
        assert len(lines) == len(refusal.problems) <= MAX_LINES
        assert all(line.isprintable() and len(line) < 5000 for line in (first, *lines))
        return False
    # What is accepted can be described, and written so that it is read as the same.
    assert list(summary(parameters, expected_values(parameters)))
    for minimal in (True, False):
        again = parse_parameters(yaml.safe_load(_yaml(parameters, minimal=minimal)))
        assert repr(again.model_dump()) == repr(parameters.model_dump())
    return True


def _yaml(parameters: Parameters, *, minimal: bool) -> str:
    return as_text(document_of(parameters, minimal=minimal), "yaml")


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False))
def test_documents_with_mistakes(chance: random.Random) -> None:
    document = mutated(chance.choice(DOCUMENTS), chance)
    judged(lambda: parse_parameters(document))


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_files_with_mistakes(
    tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(mutated_text(chance.choice(TEXTS), chance))
    judged(lambda: load_parameters(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_any_value_is_refused(value: Any) -> None:
    assert not judged(lambda: parse_parameters(value))


@pytest.mark.skipif(not SOAK, reason="takes an hour: LCLSTREAM_SOAK=1")
@pytest.mark.timeout(0)
def test_very_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(2026)  # noqa: S311
    path = tmp_path / "mutated.yaml"
    accepted = unreadable = 0
    begin = _memory_kb()
    for number in range(SOAK_INPUTS * SOAK):
        if number % 2:
            document = mutated(chance.choice(DOCUMENTS), chance)
            accepted += judged(lambda document=document: parse_parameters(document))  # type: ignore[misc]
            continue
        path.write_bytes(mutated_text(chance.choice(TEXTS), chance))
        try:
            read_document(path)
        except InvalidConfigError:
            unreadable += 1
        else:
            accepted += judged(lambda: load_parameters(path))
    grown = _memory_kb() - begin
    figures = f"{number + 1} inputs: {accepted} accepted, {unreadable} unreadable, +{grown} kB"
    with capsys.disabled():
        sys.stdout.write(f"\n{figures}\n")
    assert grown < MAX_MEMORY_KB
    assert accepted > number // 50


def _memory_kb() -> int:
    """Return how much memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
