"""JSON values, ids, times and texts in requests and responses."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Raw, Struct, field
from msgspec.json import decode

from broker.schemas.limits import LONGEST_TEXT_CHARS

JSON = Annotated[Raw, Meta(description="Any JSON value. The broker returns an equal value.")]
NULL = Raw(b"null")
# A factory, because a Raw has no hash, and the OpenAPI generator hashes plain defaults.
NULL_DEFAULT = field(default_factory=lambda: NULL)
# The lookahead refuses a newline at the end, which Python's `$` accepts.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~:-]{0,127}(?!\n)$"
Id = Annotated[
    str,
    Meta(
        pattern=ID_PATTERN,
        description="1 to 128 characters of `A-Z a-z 0-9 . _ ~ : -`, beginning with a letter or digit.",
        examples=["xrd-1"],
    ),
]
TaskId = Annotated[str, Meta(description="Id of the task.")]
ToolId = Annotated[str, Meta(description="Id of the tool.")]
WorkId = Annotated[UUID, Meta(description="Id of the work. Every attempt has an id of its own.")]
Time = Annotated[
    datetime, Meta(tz=True, description="A time (RFC 3339) with an offset, such as `2026-07-02T09:30:00Z`.")
]
Moment = Annotated[datetime, Meta(tz=True)]
CreatedAt = Annotated[Moment, Meta(description="Time of submission.")]
AssignedAt = Annotated[Moment, Meta(description="Time of assignment to the tool.")]
StartedAt = Annotated[
    Moment | None, Meta(description="Time when the tool started the work. Null if it has not started.")
]
EndedAt = Annotated[Moment, Meta(description="Time when the attempt ended.")]
SeenAt = Annotated[Moment, Meta(description="Time of the last request that the tool made.")]
AssignerSeenAt = Annotated[
    Moment | None,
    Meta(description="Time when an assigner last asked for candidates. Null if none ever has."),
]
Next = Annotated[
    str | None,
    Meta(
        description="Pass it as `?after=` to get the next page. Null on the last page. A page may have fewer"
        " items than `limit`, or none, and still have a next page."
    ),
]
Text = Annotated[
    str,
    Meta(
        description=f"At most {LONGEST_TEXT_CHARS:,} characters, unless the service is configured otherwise."
    ),
]


class Request(Struct, forbid_unknown_fields=True):
    """A request body. An unknown field is an error and is never ignored."""


class Nothing(Request, kw_only=True):
    """A body without fields. You can omit it."""


def plain(value: JSON) -> Any:
    """Return the Python value of a JSON text."""
    return decode(value)
