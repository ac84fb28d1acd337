"""What is done to the values of single events before they join a batch, one module a kind."""

from typing import Protocol

from lclstream.streamer.config import Parameters
from lclstream.streamer.config.registry import StepModel, implementation_of
from lclstream.streamer.events import Event
from lclstream.streamer.values import Values


class Step(Protocol):
    """Changes the values of events, one after the other."""

    def __init__(self, config: StepModel, parameters: Parameters) -> None:
        """Prepare.

        Raises:
            InvalidConfigError: what it needs is not there.
        """

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return the values that go on, None to drop the event.

        The arrays handed in may be views of the source's memory, and must not be changed.
        """
        ...


class Steps:
    """All steps of a pipeline, in their order."""

    def __init__(self, parameters: Parameters) -> None:
        """Prepare every step.

        Raises:
            InvalidConfigError: what one needs is not there.
        """
        self._steps: list[tuple[str, Step]] = []
        for config in parameters.processing_pipeline.all_steps():
            kind = implementation_of(config, Step)  # type: ignore[type-abstract]
            self._steps.append((config.type, kind(config, parameters)))
        self.vetoed: dict[str, int] = {}
        """Type of a step -> events that it dropped."""

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return what becomes of the values of an event, None when a step drops it."""
        for name, step in self._steps:
            after = step.apply(event, values)
            if after is None:
                self.vetoed[name] = self.vetoed.get(name, 0) + 1
                return None
            values = after
        return values
