"""The error tree and its way over HTTP."""

import pytest

from lclstream.core import errors
from lclstream.core.errors import (
    DeliveryError,
    IdentityError,
    IllegalTransitionError,
    InvalidConfigError,
    LclstreamError,
    UntrustedPeerError,
    from_body,
    is_misconfiguration,
)


@pytest.mark.parametrize("kind", list(errors.classes()), ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_what_it_was(kind: type[LclstreamError]) -> None:
    sent = kind.rebuilt("queue 'main' is closed")
    received = from_body(sent.body(), sent.status)
    assert type(received) is kind
    assert str(received) == "queue 'main' is closed"
    assert received.transient == kind.transient


@pytest.mark.parametrize("kind", list(errors.classes()), ids=lambda kind: kind.__name__)
def test_every_error_says_in_one_sentence_what_it_is(kind: type[LclstreamError]) -> None:
    assert kind.__doc__


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "RequestError"),
        (401, "NotAuthenticatedError"),
        (403, "NotAuthorizedError"),
        (404, "NotFoundError"),
        (409, "ConflictError"),
        (413, "TooLargeError"),
        (418, "RequestError"),
        (422, "InvalidConfigError"),
        (500, "BackendError"),
        (503, "UnavailableError"),
    ],
)
def test_foreign_answer_is_judged_by_its_status(status: int, name: str) -> None:
    error = from_body({"detail": "Not Found"}, status)
    assert type(error).__name__ == name
    assert str(error) == "Not Found"


def test_data_stay_with_the_error_that_was_raised_here() -> None:
    assert DeliveryError("7 messages were not delivered", 7).undelivered == 7
    transition = IllegalTransitionError("active", "start", ["new", "queued"])
    assert str(transition) == "cannot start in state 'active'"
    assert transition.history == ("new", "queued")
    config = InvalidConfigError("f.yaml: 2 problems", ["a: is required", "b: unknown field"])
    assert str(config) == "f.yaml: 2 problems\n  a: is required\n  b: unknown field"


def test_problems_arrive_one_by_one() -> None:
    sent = InvalidConfigError.counted("f.yaml", ["a: is required", "b: unknown field"])
    received = from_body(sent.body(), sent.status)
    assert isinstance(received, InvalidConfigError)
    assert str(received) == "f.yaml: 2 problems\n  a: is required\n  b: unknown field"
    assert received.problems == ("a: is required", "b: unknown field")


def test_refusal_by_fastapi_is_readable() -> None:
    listed = [
        {"type": "missing", "loc": ["body", "script"], "msg": "Field required", "input": {}},
        {"type": "enum", "loc": ["query", "state"], "msg": "Input should be 'new'", "input": "x"},
    ]
    error = from_body({"detail": listed}, 422)
    assert isinstance(error, InvalidConfigError)
    assert error.problems == ("body.script: Field required", "query.state: Input should be 'new'")
    assert str(error).splitlines() == ["request: 2 problems", *(f"  {p}" for p in error.problems)]
    assert str(from_body({"detail": ["odd", 7, {}]}, 400)).startswith("request: 3 problems")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidConfigError("no such field"), True),
        (IdentityError("no id.key"), True),
        (UntrustedPeerError("unknown ca"), False),
        (RuntimeError("broken"), False),
        (ExceptionGroup("", [IdentityError("a"), InvalidConfigError("b")]), True),
        (ExceptionGroup("", [IdentityError("a"), RuntimeError("b")]), False),
    ],
)
def test_who_must_act_before_the_program_can_work(error: Exception, expected: bool) -> None:
    assert is_misconfiguration(error) is expected


def test_outermost_handlers_can_catch_everything() -> None:
    assert all(issubclass(kind, LclstreamError) for kind in errors.classes())
    assert {400, 500} <= {kind.status for kind in errors.classes()}
