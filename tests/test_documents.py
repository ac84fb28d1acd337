"""Documents say what the code says, and their links lead somewhere."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lclstream.cli.main import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"))
    if ".venv" not in path.parts
)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")
# `lclstream buffer serve ...` in running text or code, up to the first option or placeholder.
COMMAND = re.compile(r"lclstream((?: [a-z][a-z-]*)+)")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    ["explanations/states.md", "reference/configuration.md", "reference/streamer.schema.json"],
)
def test_page_is_as_the_code_draws_it(name: str) -> None:
    made: str = generator().PAGES[name]()
    assert (ROOT / "docs" / name).read_text() == made, "run `make docs`"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its help otherwise")
def test_command_line_page_is_as_the_commands_print_it() -> None:
    made: str = generator().command_line()
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    assert page == made, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [
        target
        for target in LINK.findall(page.read_text())
        if not (page.parent / target).resolve().exists()
    ]
    assert missing == []


PARSERS = {
    tuple(shlex.split(name)[1:]): parser for name, parser in generator().parsers(build_parser())
}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    known = set(PARSERS)
    commands = {words for words in known if len(words) == 1}
    unknown = []
    for found in COMMAND.findall(page.read_text()):
        words = tuple(found.split())
        if words[:1] in commands and words not in known and words[:2] not in known:
            takes_verbs = any(each[:1] == words[:1] and len(each) > 1 for each in known)
            if takes_verbs and len(words) > 1:
                unknown.append(" ".join(words))
    assert unknown == []


@pytest.mark.parametrize("words", sorted(PARSERS), ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    parser = PARSERS[words]
    prose = parser.format_help().split("\n\n", 1)[1]
    assert len(prose) > 80, "say what it does"
    for action in parser._actions:
        assert action.help or action.choices, f"{action.option_strings or action.dest}: no help"
