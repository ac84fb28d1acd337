"""What the values of the data sources are called in the messages."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lclstream.streamer.config.registry import DataSourceModel

if TYPE_CHECKING:
    from lclstream.streamer.config.registry import ProcessingModel

WireNames = Literal["own", "psana"]


@dataclass(frozen=True, slots=True)
class NamedValue:
    """One value that a data source takes from each event."""

    label: str
    """Its name in the messages."""
    data_source: str
    part: str | None
    """Which one of several that the data source gives; None: it gives only this one."""
    source: DataSourceModel
    """The data source; if it gives several values, one that gives only this one."""


def named_values(
    data_sources: Mapping[str, DataSourceModel], wire_names: WireNames
) -> Iterator[NamedValue]:
    """Yield every value that is read, in the order of the configuration.

    Args:
        data_sources: name -> model.
        wire_names: `own`: the names of the data sources, with those of their parts behind them;
            `psana`: the names that the newest LCLStreamer sends.
    """
    for name, source in data_sources.items():
        parts = [(f"{name}.{part}", part) for part in source.parts()]
        if wire_names == "psana":
            parts = list(source.psana_parts())
        if not parts:
            yield NamedValue(name, name, None, source)
        for label, part in parts:
            yield NamedValue(label, name, part, source.part(part))


class NamedValues:
    """What follows from the sections of a configuration about its values."""

    if TYPE_CHECKING:
        data_sources: dict[str, DataSourceModel]
        processing_pipeline: ProcessingModel
        wire_names: WireNames

    @property
    def values_read(self) -> tuple[NamedValue, ...]:
        """The values that are taken from each event, in order."""
        return tuple(named_values(self.data_sources, self.wire_names))

    @property
    def sources_by_label(self) -> dict[str, DataSourceModel]:
        """Name of a value in the messages -> the data source that gives it, and nothing else."""
        return {value.label: value.source for value in self.values_read}

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the values that reach the serializer, in order."""
        return self.processing_pipeline.labels_behind(self.sources_by_label)

    def sources_of(self, labels: Container[str]) -> list[str]:
        """Return the data sources that give some of these values."""
        names = (value.data_source for value in self.values_read if value.label in labels)
        return list(dict.fromkeys(names))
