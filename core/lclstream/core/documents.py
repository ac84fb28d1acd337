"""YAML and JSON that people write, read strictly and within bounds.

Beyond what the languages themselves forbid, a document is refused when a key is written twice
(one of the two values would be lost without a word) or when it is larger than any configuration
can be: in characters, in nesting, or in what its aliases unfold to. So reading ends soon and
in little memory, whatever is in the file.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lclstream.core.errors import InvalidConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
# Values of a document with every alias written out.
MAX_VALUES = 100_000
# Characters of a number or date; Python's time for one grows with its square.
MAX_NUMBER_LENGTH = 100

_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_TOO_MANY = f"more than {MAX_VALUES} values"
_NUMBERS = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_MERGE = "tag:yaml.org,2002:merge"

# What PyYAML's constructors raise on scalars such as `2024-13-01` or `!!int ""`.
_CONSTRUCTION_ERRORS = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)


def read_document(path: Path) -> Any:
    """Return the content of a YAML or JSON file.

    Raises:
        InvalidConfigError: the file is missing, unreadable, too large, or not YAML or JSON.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise InvalidConfigError(f"cannot read {path}: larger than {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidConfigError(f"cannot read {path}: not UTF-8 text") from None
    return parse_document(text, str(path), json_only=path.suffix == ".json")


def parse_document(text: str, where: str, *, json_only: bool = False) -> Any:
    """Return the content of a YAML or JSON text.

    Args:
        text: the document.
        where: what it is, for messages.
        json_only: whether only JSON is allowed; else it may be either.

    Raises:
        InvalidConfigError: it is neither, or beyond the bounds of this module.
    """
    if json_only or text.lstrip()[:1] in ("{", "[", '"'):
        try:
            return _from_json(text)
        except json.JSONDecodeError as error:
            # YAML has brackets too, and allows more in them.
            if json_only:
                place = f"line {error.lineno}, column {error.colno}"
                raise _invalid(where, f"{place}: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            raise _invalid(where, _reason(error)) from None
    try:
        return _from_yaml(text)
    except yaml.MarkedYAMLError as error:
        raise _invalid(where, _marked(error, text)) from None
    except yaml.YAMLError as error:
        raise _invalid(where, " ".join(str(error).split())) from None


def _invalid(where: str, reason: str) -> InvalidConfigError:
    return InvalidConfigError(f"{where} is not valid YAML or JSON: {reason}")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return str(error) or type(error).__name__


def _marked(error: yaml.MarkedYAMLError, text: str) -> str:
    """Return where a document is wrong and why, in one line."""
    mark = error.problem_mark or error.context_mark
    reason = error.problem or error.context or "cannot be read"
    if reason.startswith("but "):
        reason = f"{error.context}, {reason}"
    if mark is None:
        return reason
    written = text.splitlines()[mark.line : mark.line + 1]
    if "{{" in "".join(written):
        reason += "; this looks like a template that has not been filled in"
    elif "character '\\t'" in reason:
        reason += "; indent with spaces"
    return f"line {mark.line + 1}, column {mark.column + 1}: {reason}"


def _from_json(text: str) -> Any:
    # C code counts the levels for Python, whose limit is far above ours.
    document = json.loads(text, object_pairs_hook=_once)
    _Bounds().of_value(document, 1)
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is written twice in one mapping")
        found[key] = value
    return found


def _from_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _Survey().visit(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Bounds:
    """Counts the values of a document, and refuses too many or too deep ones."""

    def __init__(self) -> None:
        self._count = 0

    def of_value(self, value: Any, depth: int) -> None:
        """Count a decoded value with all that is in it."""
        self._count += 1
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if self._count > MAX_VALUES:
            raise ValueError(_TOO_MANY)
        if isinstance(value, str):
            _require_unicode(value)
        elif isinstance(value, dict):
            for key, each in value.items():
                _require_unicode(key)
                self.of_value(each, depth + 1)
        elif isinstance(value, list):
            for each in value:
                self.of_value(each, depth + 1)


def _require_unicode(text: str) -> None:
    # Half a character can be written by an escape; nothing could print or store it.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text[:20]!r} is not Unicode text") from None


class _Loader(yaml.SafeLoader):
    """The safe loader with limits for nesting, which it follows by recursion, and for time."""

    _depth = 0
    _nodes = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Compose one node and all below it."""
        self._depth += 1
        self._nodes += 1
        too_deep = self._depth > MAX_DEPTH
        if too_deep or self._nodes > MAX_VALUES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=_TOO_DEEP if too_deep else _TOO_MANY, problem_mark=mark
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """Make the value of one node."""
        try:
            return super().construct_object(node, deep)
        except _CONSTRUCTION_ERRORS:
            kind = node.tag.rpartition(":")[2]
            _refuse(node, f"{node.value!r} is not a valid {kind}; text can be put in quotes")


class _Survey:
    """Looks through composed nodes before anything is made of them.

    A node that aliases name is visited once and counted as often as it is named.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int] | None] = {}

    def visit(self, node: Node) -> tuple[int, int]:
        """Return how many values a node unfolds to and how deep.

        Raises:
            yaml.MarkedYAMLError: it unfolds to too much, or repeats a key.
        """
        if id(node) in self._known:
            known = self._known[id(node)]
            if known is None:
                _refuse(node, "an alias stands for something that it is itself a part of")
            return known
        self._known[id(node)] = None
        below = [self.visit(each) for each in self._parts(node)]
        values = 1 + sum(count for count, _ in below)
        depth = 1 + max((levels for _, levels in below), default=0)
        if values > MAX_VALUES:
            _refuse(node, f"unfolds to {_TOO_MANY}")
        if depth > MAX_DEPTH:
            _refuse(node, _TOO_DEEP)
        self._known[id(node)] = values, depth
        return values, depth

    def _parts(self, node: Node) -> list[Node]:
        if isinstance(node, MappingNode):
            _refuse_repeated_keys(node)
            return [part for pair in node.value for part in pair]
        if isinstance(node, SequenceNode):
            return list(node.value)
        try:
            _require_unicode(node.value)
        except ValueError as error:
            _refuse(node, str(error))
        if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_LENGTH:
            _refuse(node, f"a number or date of more than {MAX_NUMBER_LENGTH} characters")
        return []


def _refuse_repeated_keys(node: MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        # A merged mapping may repeat what stands beside it; that is what it is for.
        if not isinstance(key, ScalarNode) or key.tag == _MERGE:
            continue
        if (key.tag, key.value) in seen:
            _refuse(key, f"the key {key.value!r} is written twice in one mapping")
        seen.add((key.tag, key.value))


def _refuse(node: Node, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
