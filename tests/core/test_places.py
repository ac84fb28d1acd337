"""Locations of validation, as the person sees them who wrote the document."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from lclstream.core.models import StrictModel
from lclstream.core.places import models_in, place_of, shown_path


class Gzip(StrictModel):
    type: Literal["gzip"] = "gzip"
    level: int = 3


class Plain(StrictModel):
    type: Literal["plain"] = "plain"


Codec = Annotated[Gzip | Plain, Field(discriminator="type")]


class Job(StrictModel):
    codec: Codec | None = None
    codecs: dict[str, Codec] = Field(default_factory=dict)
    names: str | list[str] = ""


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (("codec", "gzip", "level"), "codec.level"),
        # Who reports a fault without validation need not name the member of the union.
        (("codec", "level"), "codec.level"),
        # A key may be called like a member.
        (("codecs", "gzip", "gzip", "level"), "codecs.gzip.level"),
        (("codecs", 1, "[key]"), "codecs.1"),
        (("names", "list[str]", 0), "names.0"),
        (("names", "str"), "names"),
        (("nothing", "known", 3), "nothing.known.3"),
        (("a\nb", "c"), "'a\\nb'.c"),
    ],
)
def test_paths(location: tuple[int | str, ...], path: str) -> None:
    assert shown_path(place_of(location, Job).path) == path


def test_models_at_a_place() -> None:
    assert models_in(place_of(("codec",), Job).annotation) == [Gzip, Plain]
    assert models_in(place_of(("codec", "gzip"), Job).annotation) == [Gzip]
    assert models_in(place_of(("codecs", "a", "plain"), Job).annotation) == [Plain]
    assert models_in(place_of(("codecs",), Job).annotation) == []


def test_without_a_model_the_location_is_the_path() -> None:
    assert place_of(("a", 0, "gzip"), None).path == ("a", 0, "gzip")
