"""Workflow definitions: for which experiments, on which trigger, which DAG with what.

They come from YAML files that beamline staff write, and from the logbook's own definitions
whose executable is ours. Both become `WorkflowDefinition`.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, Field, JsonValue, StringConstraints, model_validator

from lclstream.core.errors import InvalidConfigError
from lclstream.core.models import StrictModel, near, parse, read_document
from lclstream.elog.models import DefinitionDocument, Trigger

_OF_FILES = (
    Trigger.FIRST_FILE_TRANSFERRED,
    Trigger.ALL_FILES_TRANSFERRED,
    Trigger.ALL_NONREC_FILES_TRANSFERRED,
)
SUFFIXES = (".yaml", ".yml", ".json")


def _finite(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    # What Airflow gets is strict JSON.
    json.dumps(value, allow_nan=False).encode()
    return value


class WorkflowDefinition(StrictModel):
    """Start a DAG when something becomes true of a run."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """Part of the identity of the DAG runs; unique among all definitions."""
    dag: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", max_length=250)]
    """Id of the DAG to run."""
    trigger: Trigger
    """What to wait for."""
    experiments: tuple[str, ...] = Field(default=("*",), min_length=1)
    """Names or patterns such as `mfx*`; any may match."""
    location: str | None = None
    """Where files must have arrived; required by the triggers about files."""
    run_param_name: str | None = None
    """Name of the run parameter; required by RUN_PARAM_IS_VALUE."""
    run_param_value: str | None = None
    """What the parameter must become, as text; required by RUN_PARAM_IS_VALUE."""
    parameters: Annotated[dict[str, JsonValue], AfterValidator(_finite)] = Field(
        default_factory=dict
    )
    """Handed to the DAG run as `conf["parameters"]`."""
    max_age_s: float | None = Field(default=None, gt=0)
    """Refuse what happened longer ago, in seconds; None for the watcher's own limit."""
    enabled: bool = True
    """Whether the definition fires at all."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.trigger in _OF_FILES and not self.location:
            raise ValueError(f"trigger {self.trigger.value} needs a location")
        if self.trigger is Trigger.RUN_PARAM_IS_VALUE and (
            not self.run_param_name or self.run_param_value is None
        ):
            raise ValueError("trigger RUN_PARAM_IS_VALUE needs run_param_name and run_param_value")
        return self

    def concerns(self, experiment: str) -> bool:
        """Return whether runs of this experiment are meant."""
        return self.enabled and any(
            fnmatchcase(experiment, pattern) for pattern in self.experiments
        )


class WorkflowFile(StrictModel):
    """Several definitions in one file."""

    workflows: tuple[WorkflowDefinition, ...]
    """The definitions."""


def read_definitions(paths: Iterable[Path]) -> tuple[WorkflowDefinition, ...]:
    """Read YAML or JSON files, and all such files of folders.

    A file holds one definition, or several under `workflows`.

    Raises:
        InvalidConfigError: names every fault of every file at once.
    """
    found: dict[str, tuple[WorkflowDefinition, Path]] = {}
    problems: list[str] = []
    for path in definition_files(paths):
        try:
            read = _read_file(path)
        except InvalidConfigError as error:
            problems += str(error).splitlines()
            continue
        for definition in read:
            if definition.name in found:
                other = found[definition.name][1]
                problems.append(f"{path}: name: {definition.name!r} is also in {other}")
            found[definition.name] = (definition, path)
    if problems:
        raise InvalidConfigError("workflow definitions are not usable", problems)
    return tuple(definition for definition, _ in found.values())


def definition_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files to read, folders replaced by what they hold, in a fixed order."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(each for each in path.iterdir() if each.suffix in SUFFIXES)
        else:
            files.append(path)
    return files


def _read_file(path: Path) -> Sequence[WorkflowDefinition]:
    data = read_document(path)
    if isinstance(data, Mapping) and "workflows" in data:
        return parse(WorkflowFile, data, str(path)).workflows
    return (parse(WorkflowDefinition, data, str(path)),)


def is_ours(document: DefinitionDocument, executables: Iterable[str]) -> bool:
    """Return whether a definition of the logbook asks for us.

    Args:
        document: the definition.
        executables: names, or whole paths, that mark ours.
    """
    path = document.executable or ""
    return bool(path) and bool({path, PurePosixPath(path).name} & set(executables))


def from_logbook(
    document: DefinitionDocument,
    experiment: str,
    templates: Mapping[str, WorkflowDefinition],
    trigger: Trigger | None = None,
) -> WorkflowDefinition:
    """Translate a definition of the logbook.

    Its command line is `--dag NAME`, or `--workflow NAME` for DAG and parameters of a definition
    in our files, with any number of `--set KEY=VALUE` (VALUE is YAML).

    Args:
        document: the definition.
        experiment: the experiment that it belongs to.
        templates: our own definitions by name.
        trigger: in place of the definition's own, for one that a person started by hand.

    Raises:
        InvalidConfigError: names the fault.
    """
    where = f"definition {document.name!r} of {experiment} in the logbook"
    dag, parameters = _command_line(document.parameters or "", templates, where)
    return parse(
        WorkflowDefinition,
        {
            "name": document.name,
            "dag": dag,
            "trigger": trigger or document.trigger,
            "experiments": [experiment],
            "location": document.location,
            "run_param_name": document.run_param_name,
            "run_param_value": document.run_param_value,
            "parameters": parameters,
        },
        where,
    )


def _command_line(
    line: str, templates: Mapping[str, WorkflowDefinition], where: str
) -> tuple[str | None, dict[str, Any]]:
    dag: str | None = None
    parameters: dict[str, Any] = {}
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise InvalidConfigError(f"{where}: parameters: {error}, got {line!r}") from None
    for option, value in _options(words, where):
        match option:
            case "--dag":
                dag = value
            case "--workflow":
                template = templates.get(value)
                if template is None:
                    hint = near(value, list(templates))
                    raise InvalidConfigError(f"{where}: no workflow {value!r}{hint}")
                dag, parameters = template.dag, {**template.parameters, **parameters}
            case _:
                name, _, text = value.partition("=")
                parameters[name] = _yaml(text, where)
    return dag, parameters


def _options(words: Sequence[str], where: str) -> list[tuple[str, str]]:
    """Split words into (option, value); accepts `--option value` and `--option=value`."""
    allowed = ("--dag", "--workflow", "--set")
    found: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option not in allowed or (not equals and not rest):
            hint = near(option, allowed) or f"; allowed: {', '.join(allowed)}, each with a value"
            raise InvalidConfigError(f"{where}: parameters: cannot use {option!r}{hint}")
        found.append((option, value if equals else rest.pop(0)))
    return found


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InvalidConfigError(f"{where}: parameters: {reason}") from None
