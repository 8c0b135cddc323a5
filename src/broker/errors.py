"""The errors of the broker. Each has an HTTP status, a stable code and a title.

To add an error, add its class here and its code to `ErrorCode` in `broker.schemas.problems`, where clients
find it; mypy and a test compare the two.

BrokerError
├── BadRequest                  400
│   ├── MalformedJson
│   ├── MalformedRequest        it is not HTTP
│   │   └── ExpectationFailed   417
│   └── ValidationFailed        names every offending field
├── Unauthenticated             401, with WWW-Authenticate
│   └── VoidToken
├── Forbidden                   403
├── NotFound                    404
│   ├── TaskNotFound
│   ├── ToolNotFound
│   ├── WorkNotFound
│   └── KeyNotFound
├── MethodNotAllowed            405
├── RequestTimeout              408
├── Conflict                    409
│   ├── TaskUnavailable
│   ├── ToolUnavailable
│   ├── ToolBusy
│   ├── WorkEnded               carries the outcome
│   ├── TaskEnded
│   ├── NothingToAccept
│   └── KeyExists
├── CursorExpired               410
├── PayloadTooLarge             413
│   └── TooHeavy                the database did not finish it in time, although it ran alone
├── UnsupportedMediaType        415
│   └── UnsupportedEncoding     with Accept-Encoding
├── TooManyRequests             429, with Retry-After
├── HeadersTooLarge             431
└── Unavailable                 503, with Retry-After
    ├── ConnectionLost          no connection to the database
    ├── DatabaseTrouble         carries the cause
    │   └── RowTrouble          one row may be the cause
    │       ├── RowFailed
    │       ├── Locked
    │       └── TooSlow
    ├── Overloaded
    ├── Crowded
    └── Stopping
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from broker.schemas.problems import ErrorCode, FieldError


class BrokerError(Exception):
    """Something unexpected went wrong in the broker; the request may be sent again."""

    status: ClassVar[int] = 500
    code: ClassVar[ErrorCode] = "internal"
    #: A class with a code has this code in words as its title, unless it sets another one.
    title: ClassVar[str] = "Internal error"
    #: Headers of the response with the problem.
    headers: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        if "code" in vars(cls) and "title" not in vars(cls):
            cls.title = cls.code.replace("_", " ").capitalize()

    def __init__(self, detail: str | None = None, *, errors: Sequence[FieldError] = ()) -> None:
        self.errors = list(errors)
        fields = "; ".join(f"{error.field}: {error.message}" for error in self.errors[:3])
        self.detail = detail or fields or (type(self).__doc__ or "").split("\n", 1)[0]
        super().__init__(self.detail)


class BadRequest(BrokerError):
    """The request cannot be understood."""

    status = 400
    code: ClassVar[ErrorCode] = "validation_failed"
    title = "Bad request"


class MalformedJson(BadRequest):
    """The body is not valid JSON."""

    code = "malformed_json"
    title = "Malformed JSON"


class MalformedRequest(BadRequest):
    """This is not HTTP/1.1 as RFC 9112 has it."""

    code = "malformed_request"


class ExpectationFailed(MalformedRequest):
    """The only expectation that this service meets is `Expect: 100-continue`."""

    status = 417
    title = "Expectation failed"


class ValidationFailed(BadRequest):
    """Some fields of the request are not as they should be; `errors` names each."""

    title = "Validation failed"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(errors=errors)


class Unauthenticated(BrokerError):
    """This key is not known: it is mistyped, cut off or revoked; or, a tool's token, it is void."""

    status = 401
    code = "unauthenticated"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="broker"'}


class VoidToken(Unauthenticated):
    """This token is void: its tool has registered again or was deleted, or its key was revoked."""


class Forbidden(BrokerError):
    """This key may not do that."""

    status = 403
    code = "forbidden"


class NotFound(BrokerError):
    """There is nothing at this address."""

    status = 404
    code: ClassVar[ErrorCode] = "not_found"


class TaskNotFound(NotFound):
    """There is no such task, neither live nor in the archive."""

    code = "task_not_found"


class ToolNotFound(NotFound):
    """There is no such tool; it may have to register first."""

    code = "tool_not_found"


class WorkNotFound(NotFound):
    """There is no such work, neither under way nor in the archive."""

    code = "work_not_found"


class KeyNotFound(NotFound):
    """There is no key of this name in use."""

    code = "key_not_found"


class MethodNotAllowed(BrokerError):
    """This address does not take this method."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(BrokerError):
    """The request did not come in time: its headers within some seconds, then its body at some speed."""

    status = 408
    code = "request_timeout"


class Conflict(BrokerError):
    """The request does not fit what is the case."""

    status = 409
    code: ClassVar[ErrorCode] = "conflict"


class TaskUnavailable(Conflict):
    """The task is not available: it is assigned, ended, failed or not yet due."""

    code = "task_unavailable"


class ToolUnavailable(Conflict):
    """The tool is not available: it has no room, is draining or offline."""

    code = "tool_unavailable"


class ToolBusy(Conflict):
    """The tool has unfinished work; `?force=true` gives that up as lost."""

    code = "tool_busy"


class WorkEnded(Conflict):
    """The work has already ended."""

    code = "work_ended"

    def __init__(self, outcome: str, *, late: str | None = None) -> None:
        self.outcome = outcome
        advice = f" A late result is kept in its record: POST {late} takes it." if late else ""
        super().__init__(f"The work has already ended: {outcome}.{advice}")


class TaskEnded(Conflict):
    """The task has already ended."""

    code = "task_ended"


class NothingToAccept(Conflict):
    """No late result of this work is kept: none has come, or its first one counted."""

    code = "nothing_to_accept"


class KeyExists(Conflict):
    """There is a key of this name. Choose another name, or replace it with `"replace": true`."""

    code = "key_exists"


class CursorExpired(BrokerError):
    """The cursor is of another database or another time; start again without one."""

    status = 410
    code = "cursor_expired"


class PayloadTooLarge(BrokerError):
    """The body is larger than this service takes."""

    status = 413
    code = "payload_too_large"


class TooHeavy(PayloadTooLarge):
    """The database did not finish this in time, although it ran alone."""

    title = "Too heavy for the database"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The database did not finish this request within {seconds:g} s, although it ran alone."
            " Send less at a time, or set BROKER_DATABASE_TIMEOUT_SECONDS higher."
        )


class UnsupportedMediaType(BrokerError):
    """Send JSON, with `Content-Type: application/json` (curl does both with --json)."""

    status = 415
    code = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    """Send the body without a `Content-Encoding`: this service decodes none."""

    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "identity"}


class TooManyRequests(BrokerError):
    """This client has too many requests waiting already; send this one again when some are answered."""

    status = 429
    code = "too_many_requests"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


class HeadersTooLarge(BrokerError):
    """The address and the headers together are larger than this service takes."""

    status = 431
    code = "headers_too_large"


class Unavailable(BrokerError):
    """The database cannot be reached just now; the request can safely be sent again."""

    status = 503
    code = "unavailable"
    title = "Service unavailable"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class ConnectionLost(Unavailable):
    """The broker has no connection to the database now. You can safely repeat the request."""


class DatabaseTrouble(Unavailable):
    """The database cannot do this now. The broker's log has the cause. You can safely repeat the request.

    Args:
        cause: What is wrong, for the log and for `/health/ready`.
    """

    def __init__(self, cause: str) -> None:
        super().__init__()
        self.cause = cause


class RowTrouble(DatabaseTrouble):
    """One row may be the cause of this trouble. The broker's log has the cause."""


class RowFailed(RowTrouble):
    """PostgreSQL failed on this request. The broker's log has the cause. You can safely repeat it."""


class Locked(RowTrouble):
    """Another session locks rows that this request needs. You can safely repeat the request."""


class TooSlow(RowTrouble):
    """The database did not finish this in time. You can safely repeat the request."""


class Overloaded(Unavailable):
    """More requests wait for the database than it can soon answer; send this one again."""


class Crowded(Unavailable):
    """The service holds as many connections, or as much of requests, as it can; come again."""


class Stopping(Unavailable):
    """The service stops before this is known to be done; the request can safely be sent again."""
