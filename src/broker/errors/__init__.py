"""The errors of the broker. Each has an HTTP status, a stable code and a title.

To add an error, add its class here and its code to `ErrorCode` in `broker.schemas.problems`, which clients
import. mypy and a test compare the two.

The first line of a docstring is the `detail` that clients get, unless the error is raised with another one.
The paragraph after it goes into the reference: when the broker returns this error, and what to do.

BrokerError
├── BadRequest                  400
│   ├── MalformedJson
│   ├── MalformedRequest        not valid HTTP/1.1
│   │   └── ExpectationFailed   417
│   └── ValidationFailed        names every invalid field
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
│   └── TooHeavy                too slow for the database, even alone
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

from broker.errors.base import BrokerError
from broker.errors.requests import (
    BadRequest,
    ExpectationFailed,
    Forbidden,
    HeadersTooLarge,
    MalformedJson,
    MalformedRequest,
    MethodNotAllowed,
    PayloadTooLarge,
    RequestTimeout,
    TooHeavy,
    TooManyRequests,
    Unauthenticated,
    UnsupportedEncoding,
    UnsupportedMediaType,
    ValidationFailed,
    VoidToken,
)
from broker.errors.resources import (
    Conflict,
    CursorExpired,
    KeyExists,
    KeyNotFound,
    NotFound,
    NothingToAccept,
    TaskEnded,
    TaskNotFound,
    TaskUnavailable,
    ToolBusy,
    ToolNotFound,
    ToolUnavailable,
    WorkEnded,
    WorkNotFound,
)
from broker.errors.unavailable import (
    ConnectionLost,
    Crowded,
    DatabaseTrouble,
    Locked,
    Overloaded,
    RowFailed,
    RowTrouble,
    Stopping,
    TooSlow,
    Unavailable,
)

__all__ = [
    "BadRequest",
    "BrokerError",
    "Conflict",
    "ConnectionLost",
    "Crowded",
    "CursorExpired",
    "DatabaseTrouble",
    "ExpectationFailed",
    "Forbidden",
    "HeadersTooLarge",
    "KeyExists",
    "KeyNotFound",
    "Locked",
    "MalformedJson",
    "MalformedRequest",
    "MethodNotAllowed",
    "NotFound",
    "NothingToAccept",
    "Overloaded",
    "PayloadTooLarge",
    "RequestTimeout",
    "RowFailed",
    "RowTrouble",
    "Stopping",
    "TaskEnded",
    "TaskNotFound",
    "TaskUnavailable",
    "TooHeavy",
    "TooManyRequests",
    "TooSlow",
    "ToolBusy",
    "ToolNotFound",
    "ToolUnavailable",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedEncoding",
    "UnsupportedMediaType",
    "ValidationFailed",
    "VoidToken",
    "WorkEnded",
    "WorkNotFound",
]
