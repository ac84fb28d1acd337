"""Models that installed packages add to the sections of a configuration, by entry points.

A package is imported only when a configuration, or the list of all types, names what it adds:
that it is installed costs nothing, and what is wrong with it hinders nobody else.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

from pydantic import BaseModel


class PluginError(Exception):
    """What a package adds cannot be used; says why."""


@dataclass(frozen=True)
class Plugin:
    """One type that packages offer for a section."""

    name: str
    entries: tuple[EntryPoint, ...]
    """One for each package that offers it."""
    is_ours: bool
    """Whether we have a type of this name; then that is used."""

    @property
    def origin(self) -> str:
        """The packages, for people: `name version (module:Class)`."""
        return " and ".join(f"{_package(entry)} ({entry.value})" for entry in self.entries)

    @property
    def package(self) -> str:
        """The package that offers it, with its version."""
        return _package(self.entries[0])

    def load(self, base: type[BaseModel]) -> type[BaseModel]:
        """Return its model.

        Args:
            base: what a model of the section derives from.

        Raises:
            PluginError: it cannot be imported, or is no model of the section.
        """
        if self.is_ours:
            raise PluginError(f"{self.name} is a type of our own; {self.origin} is not used")
        if len(self.entries) > 1:
            raise PluginError(f"is offered by {self.origin}; remove one of them")
        try:
            # A module may even want to end the process.
            model = self.entries[0].load()
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}"
            raise PluginError(f"cannot be loaded from {self.origin}: {reason}") from error
        self._require_model(model, base)
        return model  # type: ignore[no-any-return]

    def _require_model(self, model: object, base: type[BaseModel]) -> None:
        if not (isinstance(model, type) and issubclass(model, base)):
            raise PluginError(f"of {self.origin} is not derived from {base.__name__}")
        info = model.model_fields.get("type")
        if info is None or self.name not in get_args(info.annotation):
            wanted = f'type: Literal["{self.name}"] = "{self.name}"'
            raise PluginError(f"of {self.origin} needs a field `{wanted}`")
        try:
            model.model_rebuild()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise PluginError(f"of {self.origin} is no valid model: {reason}") from error


def plugins_in(group: str, own: Mapping[str, str]) -> dict[str, Plugin]:
    """Return what installed packages offer for a section, by name.

    Args:
        group: the group of the entry points of the section.
        own: the types that we have.
    """
    entries: dict[str, list[EntryPoint]] = {}
    for entry in _all_entry_points().select(group=group):
        entries.setdefault(entry.name, []).append(entry)
    return {
        name: Plugin(name, tuple(sorted(each, key=_package)), name in own)
        for name, each in sorted(entries.items())
    }


@functools.cache
def _all_entry_points() -> Any:
    # Each question looks through every installed package; so there is only one.
    return entry_points()


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
