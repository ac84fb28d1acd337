"""What is done to the values of single events before they join a batch, one module a kind."""

from typing import Protocol

from lclstream.streamer.config import Parameters
from lclstream.streamer.config.registry import StepModel, implementation_of
from lclstream.streamer.config.steps import ValueStep
from lclstream.streamer.events import Event
from lclstream.streamer.values import Values


class Step(Protocol):
    """Changes the values of events, one after the other.

    Several threads may work side by side: then each has its own steps.
    """

    def __init__(self, config: StepModel, parameters: Parameters) -> None:
        """Prepare.

        Raises:
            InvalidConfigError: what it needs is not there.
        """

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return the values that go on, None to drop the event.

        The arrays handed in may be views of the source's memory, and must not be changed. Those
        returned may be in use still when the next event comes.

        Raises:
            InvalidConfigError: a value is not what the configuration takes it for.
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
        configs = parameters.processing_pipeline.all_steps()
        # Of the steps of others nothing is known.
        self.may_miss = any(not isinstance(c, ValueStep) or c.may_miss for c in configs)
        """Whether a value can be missing behind them although nothing is in front of them."""
        for config in configs:
            kind = implementation_of(config, Step)  # type: ignore[type-abstract]
            self._steps.append((self._named(config.type), kind(config, parameters)))
        self.vetoed: dict[str, int] = {}
        """Step -> events that it dropped; the second of a type is called `<type>_2`."""

    def apply(self, event: Event, values: Values) -> Values | None:
        """Return what becomes of the values of an event, None when a step drops it."""
        for name, step in self._steps:
            after = step.apply(event, values)
            if after is None:
                self.vetoed[name] = self.vetoed.get(name, 0) + 1
                return None
            values = after
        return values

    def _named(self, kind: str) -> str:
        alike = sum(name.split("_")[0] == kind for name, _ in self._steps)
        return f"{kind}_{alike + 1}" if alike else kind
