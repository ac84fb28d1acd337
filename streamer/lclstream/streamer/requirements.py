"""What a configuration needs of the environment that it runs in."""

from collections.abc import Iterator
from typing import Any

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.registry import Choice, implementation_of
from lclstream.streamer.sources.psana_library import require

PSANA = {"Psana1EventSource": 1, "Psana2EventSource": 2}


def missing_requirements(parameters: Parameters) -> list[str]:
    """Return what is missing here, one sentence each; nothing is opened or connected."""
    return list(dict.fromkeys(_missing(parameters)))


def require_everything(parameters: Parameters) -> None:
    """Refuse a configuration that cannot run here.

    Raises:
        InvalidConfigError: names everything that is missing.
    """
    missing = missing_requirements(parameters)
    if len(missing) == 1:
        raise InvalidConfigError(missing[0])
    if missing:
        raise InvalidConfigError.counted("this environment", missing)


def _missing(parameters: Parameters) -> Iterator[str]:
    kind = parameters.event_source.type
    if kind in PSANA:
        try:
            require(PSANA[kind], kind)
        except InvalidConfigError as error:
            yield str(error)
    for model in _chosen(parameters):
        if not model.implementation:
            continue
        try:
            implementation_of(model, Any)
        except InvalidConfigError as error:
            yield str(error)


def _chosen(parameters: Parameters) -> Iterator[Choice]:
    yield parameters.event_source
    yield from parameters.data_sources.values()
    yield from parameters.processing_pipeline.all_steps()
    yield parameters.data_serializer
    yield from parameters.data_handlers
