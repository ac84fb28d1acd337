"""Types of installed packages: found, named, explained; what is wrong with one hinders no other."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "docs" / "template-plugin"
HOW_TO = ROOT / "docs" / "how-to" / "add-to-the-streamer.md"

GROUPS = {
    "event_sources": "EventSourceModel",
    "data_sources": "DataSourceModel",
    "processing": "ProcessingModel",
    "steps": "StepModel",
    "serializers": "SerializerModel",
    "handlers": "HandlerModel",
}
CONFIGURATION = """
event_source: {{type: InternalEventSource, number_of_events_to_generate: 3}}
data_sources: {{a: {{type: IntValue, value: 1}}, b: {source}}}
processing_pipeline:
  type: ProcessingPipeline
  batch_size: 2
  steps: {steps}
data_serializer: {{type: HDF5BinarySerializer}}
"""


def package(
    folder: Path, name: str, entry_points: Mapping[str, str], modules: Mapping[str, str]
) -> None:
    """Install a package into a folder as pip does.

    Args:
        folder: is on the path of the process that shall see it.
        name: of the distribution.
        entry_points: `group/type` -> `module:Model`.
        modules: file name -> content.
    """
    for file, content in modules.items():
        (folder / file).write_text(content)
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    sections: dict[str, list[str]] = {}
    for entry, place in entry_points.items():
        group, type_name = entry.split("/")
        sections.setdefault(group, []).append(f"{type_name} = {place}")
    text = "".join(
        f"[lclstream.streamer.{group}]\n" + "\n".join(lines) + "\n"
        for group, lines in sections.items()
    )
    (information / "entry_points.txt").write_text(text)


DRIVER = """
import contextlib, io, json, sys
from lclstream.cli.main import main
done = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["streamer", *words])
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


def run(folder: Path, *words: str, code: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command, or some code, where the packages of a folder are installed."""
    begin = ["-c", code] if code else ["-m", "lclstream.cli", "streamer"]
    return subprocess.run(
        [sys.executable, *begin, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def run_all(folder: Path, *commands: list[str]) -> list[tuple[int, str, str]]:
    """Run commands in one process; return exit code, output and errors of each."""
    done = run(folder, json.dumps(commands), code=DRIVER)
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


def step(name: str, body: str = "") -> str:
    """Return a module with the model of a step."""
    return (
        "from typing import ClassVar, Literal\n"
        "from lclstream.streamer.config.registry import StepModel\n"
        f"class Config(StepModel):\n"
        f'    """What {name} does."""\n'
        f"    implementation: ClassVar = 'nowhere:{name}'\n"
        f"    type: Literal['{name}'] = '{name}'\n"
        f"    strength: int\n"
        f"    '''How much.'''\n{body}"
    )


def configuration(
    folder: Path, steps: str = "[]", source: str = "{type: FloatValue, value: 1}", name: str = "c"
) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(CONFIGURATION.format(steps=steps, source=source))
    return str(path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the template is installed, from the wheel that it makes."""
    folder = tmp_path_factory.mktemp("template")
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        str(folder / "dist"),
    ]
    subprocess.run(command, cwd=TEMPLATE, check=True, capture_output=True)
    (wheel,) = (folder / "dist").iterdir()
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_template_runs(template: Path) -> None:
    example = str(TEMPLATE / "example.yaml")
    done = run(template, "check", "--read", example)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  statistics.mean     float64, 8 B\n" in done.stdout
    done = run(template, "run", "-c", example)
    assert done.returncode == 0, done.stderr
    assert len((template / "noise.jsonl.r0").read_text().splitlines()) == 6


def test_the_templates_own_tests_pass(template: Path) -> None:
    tests = str(TEMPLATE / "tests")
    done = run(
        template,
        "-q",
        "-p",
        "no:cacheprovider",
        tests,
        code="import pytest, sys; sys.exit(pytest.main())",
    )
    assert done.returncode == 0, done.stdout


def test_the_templates_types_are_listed_and_explained(template: Path) -> None:
    (_, listed, _), (_, explained, _), (_, schema, _) = run_all(
        template, ["list"], ["list", "SubtractPedestal"], ["schema"]
    )
    offered = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]["entry-points"]
    for types in offered.values():
        for name in types:
            assert re.search(rf"^  {name} .*\[my-streamer-parts 0\.1\.0\]$", listed, re.MULTILINE)
    place = "my_streamer_parts.config:SubtractPedestalConfig"
    assert f"\nfrom: my-streamer-parts 0.1.0 ({place})\n" in explained
    assert "\npedestal: number, default 0.0\n" in explained
    assert '"SubtractPedestalConfig"' in schema


def test_the_how_to_shows_what_the_template_has() -> None:
    files = [*TEMPLATE.rglob("*.py"), TEMPLATE / "pyproject.toml"]
    content = "\n".join(path.read_text() for path in files)
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    assert len(blocks) == 3
    assert [block for block in blocks if block not in content] == []


def test_the_how_to_names_every_group() -> None:
    text = HOW_TO.read_text()
    for group, model in GROUPS.items():
        assert f"| `lclstream.streamer.{group}` |" in text
        assert f"`{model}`" in text


BROKEN = {
    "NoModule": ("absent_module:Config", "ModuleNotFoundError: No module named 'absent_module'"),
    "NoClass": ("fine:Absent", "AttributeError: module 'fine' has no attribute 'Absent'"),
    "Raises": ("raises:Config", "RuntimeError: no licence"),
    "Exits": ("leaves:Config", "SystemExit: 3"),
    "SyntaxFault": ("wrong:Config", "SyntaxError: "),
    "NoModel": ("fine:NUMBER", "is not derived from StepModel"),
    "OtherSection": ("handler:Config", "is not derived from StepModel"),
    "OtherName": ("fine:Config", 'needs a field `type: Literal["OtherName"] = "OtherName"`'),
    "Unbuildable": ("unbuildable:Config", "is no valid model: "),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a package of which only one type is fine."""
    folder = tmp_path_factory.mktemp("broken")
    entries = {f"steps/{name}": place for name, (place, _) in BROKEN.items()}
    package(
        folder,
        "faulty",
        entries | {"steps/Fine": "fine:Config"},
        {
            "fine.py": "NUMBER = 3\n" + step("Fine"),
            "raises.py": "raise RuntimeError('no licence')",
            "leaves.py": "import sys; sys.exit(3)",
            "wrong.py": "def (",
            "handler.py": step("OtherSection").replace("StepModel", "HandlerModel"),
            "unbuildable.py": step("Unbuildable", "    what: 'Unknown'\n"),
        },
    )
    return folder


def test_broken_types_hinder_nobody_who_does_not_name_them(broken: Path) -> None:
    path = configuration(broken, name="without")
    (checked, _, complaints), (ran, _, log) = run_all(broken, ["check", path], ["run", "-c", path])
    assert (checked, complaints, ran) == (0, "", 0), log


def test_broken_types_are_listed_with_the_reason(broken: Path) -> None:
    (code, listed, _), (schema, _, _), (_, explained, _) = run_all(
        broken, ["list"], ["schema"], ["list", "Raises"]
    )
    assert (code, schema) == (0, 0)
    for name, (_, reason) in BROKEN.items():
        line = next(each for each in listed.splitlines() if each.startswith(f"  {name} "))
        assert "cannot be used: " in line
        assert reason in line
        assert "faulty 1.0" in line
    assert "What Fine does. [faulty 1.0]" in listed
    assert explained.startswith("Raises cannot be used: the plugin cannot be loaded from faulty")


def test_who_names_a_broken_type_is_told_why(broken: Path) -> None:
    steps = "[" + ", ".join(f"{{type: {name}}}" for name in BROKEN) + "]"
    done = run(broken, "check", configuration(broken, steps, name="named"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    first, *lines = done.stderr.splitlines()
    assert first.endswith(f"{len(BROKEN)} problems")
    for number, (line, name) in enumerate(zip(lines, BROKEN, strict=True)):
        assert line.startswith(f"  processing_pipeline.steps.{number}: the plugin '{name}' ")
        assert BROKEN[name][1] in line


def test_a_fault_of_a_field_of_a_plugin_is_reported_like_ours(broken: Path) -> None:
    steps = "[{type: Fine, strength: a lot}, {type: Fine, strenght: 3}]"
    ((_, _, complaints),) = run_all(broken, ["check", configuration(broken, steps, name="fields")])
    assert complaints.splitlines()[1:] == [
        "  processing_pipeline.steps.0.strength: input should be a valid integer, unable to parse"
        " string as an integer, got 'a lot'",
        "  processing_pipeline.steps.1.strength: is required",
        "  processing_pipeline.steps.1.strenght: unknown field (did you mean 'strength'?); allowed:"
        " strength, type",
    ]


def test_an_implementation_that_is_not_there_is_named_before_anything_runs(broken: Path) -> None:
    path = configuration(broken, "[{type: Fine, strength: 3}]", name="absent")
    (checked, _, notice), (ran, _, log) = run_all(broken, ["check", path], ["run", "-c", path])
    missing = "Fine cannot be used: nowhere is not installed"
    assert (checked, notice) == (0, f"notice: cannot run here: {missing}\n")
    assert ran == 2
    assert log.endswith(f"lclstream: {missing}\n")


def test_names_that_are_taken(tmp_path: Path) -> None:
    fine = {"steps/Twice": "{0}:Config", "data_sources/IntValue": "{0}:Config"}
    for name in ("first", "second"):
        entries = {key: place.format(name) for key, place in fine.items()}
        package(tmp_path, name, entries, {f"{name}.py": step("Twice")})
    (refused, _, why), (code, _, notice), (_, listed, _) = run_all(
        tmp_path,
        ["check", configuration(tmp_path, "[{type: Twice, strength: 1}]", name="twice")],
        ["check", configuration(tmp_path)],
        ["list"],
    )
    both = "first 1.0 (first:Config) and second 1.0 (second:Config)"
    assert refused == 2
    assert why.splitlines()[1:] == [
        f"  processing_pipeline.steps.0: the plugin 'Twice' is offered by {both}; remove one of"
        " them, got {'type': 'Twice', 'strength': 1}"
    ]
    ours = f"data_sources.a: IntValue is ours; that of {both} is not used"
    assert (code, notice) == (0, f"notice: {ours}\n")
    assert f"not used: {both} offers a type that we have" in listed


CARELESS = """
    def problems(self, parameters):
        {problems}
    def labels_after(self, labels):
        {labels}
"""


# Name -> what follows the fields of its model, and what is said of it.
FAILING = {
    "Raises": (
        CARELESS.format(problems="raise KeyError('x')", labels="return labels"),
        "  processing_pipeline.steps.0: could not be checked: KeyError: 'x'",
    ),
    "Returns": (
        CARELESS.format(problems="return 3", labels="return labels"),
        "  processing_pipeline.steps.0: could not be checked: TypeError: 'int' object is not",
    ),
    "Labels": (
        CARELESS.format(problems="return iter(())", labels="raise KeyError('y')"),
        "  processing_pipeline: could not be checked: KeyError: 'y'",
    ),
    "Validator": (
        "    from pydantic import field_validator\n"
        "    @field_validator('strength')\n"
        "    @classmethod\n"
        "    def _check(cls, value): return {}['z']\n",
        "  processing_pipeline.steps.0: the plugin 'Validator' failed to check its fields:"
        " KeyError: 'z'",
    ),
}


def test_a_check_that_fails_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    package(
        tmp_path,
        "careless",
        {f"steps/{name}": f"{name.lower()}_step:Config" for name in FAILING},
        {f"{name.lower()}_step.py": step(name, body) for name, (body, _) in FAILING.items()},
    )
    paths = {
        name: configuration(tmp_path, f"[{{type: {name}, strength: 1}}]", name=name)
        for name in FAILING
    }
    done = run_all(tmp_path, *(["check", path] for path in paths.values()))
    for (code, _, complaints), (_, line) in zip(done, FAILING.values(), strict=True):
        assert code == 2
        assert line in complaints


SOURCE = """
from typing import ClassVar, Literal
from lclstream.streamer.config.registry import DataSourceModel
class Config(DataSourceModel):
    '''A source.'''
    implementation: ClassVar = __name__ + ":Source"
    type: Literal["{0}"] = "{0}"
    def parts(self): return {parts}
class Source:
    def __init__(self, config, parameters): pass
    def read(self, event): {read}
"""


def test_a_data_source_that_fails_is_named_with_the_event(tmp_path: Path) -> None:
    sources = {
        "Faulty": SOURCE.format("Faulty", parts=(), read="raise OSError('cable')"),
        "Wrong": SOURCE.format("Wrong", parts=(), read="return object()"),
        "Single": SOURCE.format("Single", parts=("x",), read="return 3"),
    }
    package(
        tmp_path,
        "sources",
        {f"data_sources/{name}": f"{name.lower()}_source:Config" for name in sources},
        {f"{name.lower()}_source.py": module for name, module in sources.items()},
    )
    paths = [
        configuration(tmp_path, source=f"{{type: {name}}}", name=name.lower()) for name in sources
    ]
    done = run_all(tmp_path, *(["run", "-c", path] for path in paths))
    assert [(code, log.splitlines()[-1]) for code, _, log in done] == [
        (1, "lclstream: data source 'b' failed at event 0: OSError: cable"),
        (2, "lclstream: data source 'b' gives object values, which cannot be sent"),
        (1, "lclstream: data source 'b' failed at event 0: TypeError: must return a mapping of its"
            " parts, got int"),
    ]  # fmt: skip


def test_parts_that_are_missing_are_missing_values(tmp_path: Path) -> None:
    read = "return {'x': 1.5} if event.index else None"
    module = SOURCE.format("Source", parts=("x", "y"), read=read)
    package(tmp_path, "source", {"data_sources/Source": "source:Config"}, {"source.py": module})
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from lclstream.streamer.config import load_parameters\n"
        "from lclstream.streamer.data_sources import Extractor\n"
        "from lclstream.streamer.events import open_event_source\n"
        "parameters = load_parameters(Path('c.yaml'))\n"
        "extractor = Extractor(parameters, parameters.labels)\n"
        "for event in open_event_source(parameters, 0, 1):\n"
        "    values = extractor.extract(event)\n"
        "    print({name: value and value.tolist() for name, value in values.items()})\n"
        "print(extractor.missing)"
    )
    configuration(tmp_path, source="{type: Source}")
    done = run(tmp_path, code=code)
    assert done.stdout.splitlines() == [
        "{'a': 1, 'b.x': None, 'b.y': None}",
        "{'a': 1, 'b.x': 1.5, 'b.y': None}",
        "{'a': 1, 'b.x': 1.5, 'b.y': None}",
        "{'b': 3}",
    ]


def test_packages_are_looked_for_once_and_imported_only_when_named(broken: Path) -> None:
    code = (
        "import importlib.metadata as metadata, sys\n"
        "calls = []\n"
        "whole = metadata.entry_points\n"
        "metadata.entry_points = lambda **a: calls.append(a) or whole(**a)\n"
        "from lclstream.streamer.config import parse_parameters\n"
        "import yaml\n"
        "parse_parameters(yaml.safe_load(open('c.yaml')))\n"
        "print(calls.count({}), 'fine' in sys.modules)\n"
    )
    configuration(broken)
    assert run(broken, code=code).stdout == "1 False\n"
    configuration(broken, "[{type: Fine, strength: 1}]")
    assert run(broken, code=code).stdout == "1 True\n"
