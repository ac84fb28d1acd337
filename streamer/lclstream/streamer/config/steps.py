"""What can be done to single events: what all steps share, and those that choose values and events.

The other steps stand in `pixel_steps`, `number_steps`, `diffraction_steps`, `waveform_steps` and
`peaknet`.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lclstream.core.models import near
from lclstream.streamer.config.known import Knowledge, Known
from lclstream.streamer.config.registry import Finding, StepModel

Place = tuple[str | int, ...]

Label = Annotated[str, Field(min_length=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _once_each(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names {', '.join(map(repr, twice))} more than once")
    return names


Labels = Annotated[
    list[Label],
    Field(min_length=1),
    AfterValidator(_once_each),
    BeforeValidator(_as_list, json_schema_input_type=Label | list[Label]),
]
"""Names of values, each once; one name may stand without a list."""


class ValueStep(StepModel):
    """A step that says which values it reads, and which it makes."""

    may_miss: ClassVar[bool] = False
    """Whether a value that it makes can be missing although all that it reads is there."""

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield every value that must exist in front of it, and the field that names it."""
        return iter(())

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield every value that it adds, and the field that names it."""
        return iter(())

    def removes(self) -> tuple[str, ...]:
        """Return the values that do not exist behind it any more."""
        return ()

    def learned(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known about the values that it makes or changes."""
        del known
        return {}

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield what cannot be done to the values as far as they are known."""
        del known
        return iter(())

    def labels_after(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the values behind it."""
        kept = [label for label in labels if label not in self.removes()]
        return (*kept, *(name for _, name in self.makes() if name not in kept))

    def known_after(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known about the values behind it."""
        learned = self.learned(known)
        return {
            label: learned.get(label, known.get(label, Known()))
            for label in self.labels_after(tuple(known))
        }

    def faults(self, known: Knowledge) -> Iterator[Finding]:
        """Yield what is wrong with it behind the steps in front of it."""
        unknown = False
        for place, label in self.reads():
            if label not in known:
                unknown = True
                yield place, _no_such_value(label, known), label
        taken = {label: "exists already" for label in known if label not in self.removes()}
        for place, label in self.makes():
            if label in taken:
                yield place, f"the value {label!r} {taken[label]}; choose another name", label
            taken[label] = "is made twice here"
        if not unknown:
            yield from self.misfits(known)


class PairedStep(ValueStep):
    """A step that does the same to each of its inputs."""

    inputs: Labels
    """What it is done to; one name, or a list."""
    outputs: Labels | None = None
    """What the names of the results begin with, one for each input; without it, the inputs'."""

    @model_validator(mode="after")
    def _one_output_each(self) -> "PairedStep":
        if self.outputs is not None and len(self.outputs) != len(self.inputs):
            raise ValueError(
                f"outputs must be as many as inputs, got {len(self.outputs)} for {len(self.inputs)}"
            )
        return self

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each input with the name of its result."""
        return tuple(zip(self.inputs, self.outputs or self.inputs, strict=True))

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the inputs."""
        return ((("inputs", i), label) for i, label in enumerate(self.inputs))


class MapStep(PairedStep):
    """A step that makes one value of each of its inputs."""

    outputs: Labels | None = None
    """Names of the results, one for each input, which then stays too. Without it, the results
    replace their inputs."""

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield the outputs, where they have names of their own."""
        return ((("outputs", i), label) for i, label in enumerate(self.outputs or ()))

    def learned(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known about the results."""
        return {output: self.changed(known.get(label, Known())) for label, output in self.pairs}

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield what cannot be done to the inputs."""
        for number, label in enumerate(self.inputs):
            for text in self.objections(known[label]):
                yield ("inputs", number), text, label

    def changed(self, known: Known) -> Known:
        """Return what is known about the result of one value."""
        return known

    def objections(self, known: Known) -> Iterator[str]:
        """Yield why it cannot be done to one value."""
        if known.is_text:
            yield "is text, not numbers"


class SelectValuesConfig(ValueStep):
    """Keep some values and drop all others."""

    implementation: ClassVar = "lclstream.streamer.steps.selection:SelectValues"
    type: Literal["SelectValues"] = "SelectValues"
    keep: Labels

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield what is kept."""
        return ((("keep", i), label) for i, label in enumerate(self.keep))

    def labels_after(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return what is kept, in the order in which it was."""
        return tuple(label for label in labels if label in self.keep)


class DropValuesConfig(ValueStep):
    """Drop some values and keep all others."""

    implementation: ClassVar = "lclstream.streamer.steps.selection:DropValues"
    type: Literal["DropValues"] = "DropValues"
    drop: Labels

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield what is dropped."""
        return ((("drop", i), label) for i, label in enumerate(self.drop))

    def removes(self) -> tuple[str, ...]:
        """Return what is dropped."""
        return tuple(self.drop)


class RenameValuesConfig(ValueStep):
    """Give values other names; two can change names."""

    implementation: ClassVar = "lclstream.streamer.steps.selection:RenameValues"
    type: Literal["RenameValues"] = "RenameValues"
    names: dict[Label, Label] = Field(min_length=1)
    """Name so far -> new name."""

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the names so far."""
        return ((("names", label), label) for label in self.names)

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield the new names."""
        return ((("names", label), new) for label, new in self.names.items())

    def removes(self) -> tuple[str, ...]:
        """Return the names so far."""
        return tuple(self.names)

    def labels_after(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names, each where the one before it was."""
        return tuple(dict.fromkeys(self.names.get(label, label) for label in labels))

    def learned(self, known: Knowledge) -> dict[str, Known]:
        """Return what was known by the names so far."""
        return {new: known.get(label, Known()) for label, new in self.names.items()}


class RequireValuesConfig(ValueStep):
    """Drop events in which one of some values is missing."""

    implementation: ClassVar = "lclstream.streamer.steps.selection:RequireValues"
    type: Literal["RequireValues"] = "RequireValues"
    inputs: Labels

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield what must be there."""
        return ((("inputs", i), label) for i, label in enumerate(self.inputs))


class SelectEventsConfig(ValueStep):
    """Keep events in which a number lies within limits, such as the energy of the pulse."""

    implementation: ClassVar = "lclstream.streamer.steps.selection:SelectEvents"
    type: Literal["SelectEvents"] = "SelectEvents"
    input: Label
    """A value with one number in each event."""
    minimum: float | None = None
    """Smallest number that is kept; without it there is no such limit."""
    maximum: float | None = None
    """Largest number that is kept; without it there is no such limit."""
    inverse: bool = False
    """Keep the events outside of the limits instead."""
    missing: Literal["drop", "keep"] = "drop"
    """What happens to events in which the number is missing, or is not a number."""

    @model_validator(mode="after")
    def _limited(self) -> "SelectEventsConfig":
        if self.minimum is None and self.maximum is None:
            raise ValueError("needs a minimum, a maximum or both")
        if None not in (self.minimum, self.maximum) and self.minimum > self.maximum:  # type: ignore[operator]
            raise ValueError(f"minimum must be <= maximum, got {self.minimum}")
        return self

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the number."""
        yield ("input",), self.input

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield why it is not one number."""
        value = known[self.input]
        if value.is_text:
            yield ("input",), "is text, not a number", self.input
        elif value.is_ragged or value.shape:
            yield ("input",), "has more than one number in an event", self.input


class PrescaleConfig(ValueStep):
    """Keep one of every N events, or drop one of every N.

    It goes by the number of the event in the whole source, so that the same events are kept
    whatever the number of ranks.
    """

    implementation: ClassVar = "lclstream.streamer.steps.selection:Prescale"
    type: Literal["Prescale"] = "Prescale"
    keep_every: int | None = Field(default=None, ge=1)
    """Keep the events whose number % this == offset."""
    drop_every: int | None = Field(default=None, ge=2)
    """Drop the events whose number % this == offset."""
    offset: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_of_both(self) -> "PrescaleConfig":
        if (self.keep_every is None) == (self.drop_every is None):
            raise ValueError("needs either keep_every or drop_every")
        if self.offset >= self.every:
            raise ValueError(f"offset must be less than {self.every}, got {self.offset}")
        return self

    @property
    def every(self) -> int:
        """How many events one is kept or dropped of."""
        return self.keep_every or self.drop_every or 1


def _no_such_value(label: str, known: Knowledge) -> str:
    names = list(known)
    hint = near(label, names) or f"; there are: {', '.join(names) or 'none'}"
    return f"there is no such value at this step{hint}"
