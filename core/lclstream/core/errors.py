"""The errors that LCLStream raises on purpose, ordered by who must act.

```
LclstreamError                   status 500, transient False
├── RequestError                 the caller must act: 400
│   ├── NotAuthenticatedError    401
│   ├── NotAuthorizedError       403
│   ├── NotFoundError            404
│   ├── ConflictError            409
│   │   └── IllegalTransitionError(state, event, history)
│   ├── TooLargeError            413
│   └── InvalidConfigError       422
├── BackendError                 the site must act: 502
│   ├── SubmitError
│   ├── SchedulerError           transient
│   └── UnavailableError         503, transient
├── StreamError                  something about a stream
│   ├── EndOfStream              news, not a fault
│   ├── BufferClosedError
│   ├── DecodeError
│   ├── ExtractionError
│   └── DeliveryError            undelivered
└── IdentityError                something about keys
    ├── UntrustedPeerError       403
    └── CertificateExpiredError  403
```

An error travels over HTTP as `{"detail", "error", "transient"}`: `body` makes it and
`from_body` rebuilds the same class on the other side. One with several problems has them as
`problems` too, and of FastAPI's own refusals the list in `detail` is understood.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self


class LclstreamError(Exception):
    """Base of every error that LCLStream raises on purpose."""

    status: ClassVar[int] = 500
    """HTTP status of an answer that carries this error."""
    transient: ClassVar[bool] = False
    """Whether the same call may succeed later, without any change by the caller."""

    def body(self) -> dict[str, Any]:
        """Return what goes over HTTP."""
        return {"detail": str(self), "error": type(self).__name__, "transient": self.transient}

    @classmethod
    def rebuilt(cls, detail: str, problems: Sequence[str] = ()) -> Self:
        """Return an error of this class as the other side raised it, without its data.

        Args:
            detail: its message.
            problems: of an `InvalidConfigError`; the others have none.
        """
        # Its __init__ may want data that stayed there.
        error = cls.__new__(cls)
        error.args = (detail,)
        if isinstance(error, InvalidConfigError):
            error.problems = tuple(problems)
        return error


class RequestError(LclstreamError):
    """The caller asked for something that cannot be done as asked."""

    status = 400


class NotAuthenticatedError(RequestError):
    """The caller did not say, or could not prove, who it is."""

    status = 401


class NotAuthorizedError(RequestError):
    """The caller is known and may not do this."""

    status = 403


class NotFoundError(RequestError):
    """The thing does not exist, or the caller may not know that it does."""

    status = 404


class ConflictError(RequestError):
    """The thing is not in a state in which this can be done."""

    status = 409


class IllegalTransitionError(ConflictError):
    """A state machine got an event that its state does not know; nothing was changed."""

    def __init__(self, state: str, event: str, history: Sequence[str] = ()) -> None:
        super().__init__(f"cannot {event} in state '{state}'")
        self.state, self.event, self.history = state, event, tuple(history)


class TooLargeError(RequestError):
    """A body, message or file is above its limit."""

    status = 413


class InvalidConfigError(RequestError):
    """A configuration or request does not fit its model; `problems` names every fault."""

    status = 422
    problems: tuple[str, ...] = ()

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]))
        self.problems = tuple(problems)

    @classmethod
    def counted(cls, where: str, problems: Sequence[str]) -> Self:
        """Return the error of something that has problems: where, how many, and which."""
        plural = "s" if len(problems) != 1 else ""
        return cls(f"{where}: {len(problems)} problem{plural}", problems)

    def body(self) -> dict[str, Any]:
        """Return what goes over HTTP, with every problem by itself."""
        return super().body() | {"problems": list(self.problems)}


class BackendError(LclstreamError):
    """A site, scheduler or service did not do its part."""

    status = 502


class SubmitError(BackendError):
    """A job could not be handed to its batch system."""


class SchedulerError(BackendError):
    """The batch system did not answer, or not understandably."""

    transient = True


class UnavailableError(BackendError):
    """A service is down, unreachable or out of a resource; trying again helps."""

    status = 503
    transient = True


class StreamError(LclstreamError):
    """Something about a data stream."""


class EndOfStream(StreamError):  # noqa: N818
    """The stream has ended properly: news, not a fault."""


class BufferClosedError(StreamError):
    """The buffer takes no more messages."""


class DecodeError(StreamError):
    """A message or file is not what its format says."""


class ExtractionError(StreamError):
    """A reading could not be taken from an event, for another reason than that it is missing."""


class DeliveryError(StreamError):
    """Messages could not be delivered; `undelivered` says how many."""

    undelivered: int = 0

    def __init__(self, message: str, undelivered: int) -> None:
        super().__init__(message)
        self.undelivered = undelivered


class IdentityError(LclstreamError):
    """A key or certificate is missing, unsafe or unusable."""


class UntrustedPeerError(IdentityError):
    """The other side's certificate does not chain to a trusted authority."""

    status = 403


class CertificateExpiredError(IdentityError):
    """A certificate is outside its time of validity."""

    status = 403


def classes(top: type[LclstreamError] = LclstreamError) -> Iterator[type[LclstreamError]]:
    """Yield an error class and all classes below it."""
    yield top
    for below in top.__subclasses__():
        yield from classes(below)


def for_status(status: int) -> type[LclstreamError]:
    """Return the most general error class that answers with an HTTP status."""
    if status >= 500:
        return UnavailableError if status == UnavailableError.status else BackendError
    return next((kind for kind in classes(RequestError) if kind.status == status), RequestError)


def from_body(body: Mapping[str, Any], status: int = 500) -> LclstreamError:
    """Rebuild the error that a server raised.

    Args:
        body: the decoded answer; an unknown or absent `error` falls back on the status.
        status: HTTP status of the answer.
    """
    named = {kind.__name__: kind for kind in classes()}
    kind = named.get(str(body.get("error"))) or for_status(status)
    detail, problems = body.get("detail", f"HTTP {status}"), _problems_in(body)
    if isinstance(detail, list):
        return kind.rebuilt(str(InvalidConfigError.counted("request", problems)), problems)
    return kind.rebuilt(str(detail), problems)


def _problems_in(body: Mapping[str, Any]) -> list[str]:
    """Return the problems that an answer lists, in our form or in FastAPI's."""
    listed = body.get("problems", body.get("detail"))
    return [_problem(each) for each in listed] if isinstance(listed, list) else []


def _problem(listed: Any) -> str:
    if not isinstance(listed, Mapping):
        return str(listed)
    place = listed.get("loc")
    field = ".".join(str(part) for part in place) if isinstance(place, list) else "request"
    return f"{field}: {listed.get('msg', 'is not valid')}"


def is_misconfiguration(error: BaseException) -> bool:
    """Return whether a program cannot work before who started it changes something.

    That is a wrong configuration or an identity of its own that cannot be used; of a group,
    all errors. A peer that does not trust us may do so tomorrow.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_misconfiguration(each) for each in error.exceptions)
    if isinstance(error, UntrustedPeerError):
        return False
    return isinstance(error, InvalidConfigError | IdentityError)
