"""JSON values, ids, times and texts in requests and responses."""

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct, field
from msgspec.json import decode

from broker.schemas.limits import LONGEST_TEXT_CHARS

JSON = Annotated[Raw, Meta(description="Any JSON value; it comes back equal.")]
NULL = Raw(b"null")
# A factory, because a Raw has no hash and the description of the API hashes plain defaults.
NULL_DEFAULT = field(default_factory=lambda: NULL)
# The lookahead refuses a newline at the end, which Python's `$` accepts.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~:-]{0,127}(?!\n)$"
Id = Annotated[
    str,
    Meta(
        pattern=ID_PATTERN,
        description="1 to 128 characters of A-Z a-z 0-9 . _ ~ : - beginning with a letter or digit.",
        examples=["xrd-1"],
    ),
]
Time = Annotated[datetime, Meta(tz=True, description="RFC 3339, with an offset.")]
Moment = Annotated[datetime, Meta(tz=True)]
Next = Annotated[
    str | None,
    Meta(
        description="Goes into `?after=`; null at the end. A page may have fewer items than `limit`, or none,"
        " and still have a next one."
    ),
]
Text = Annotated[
    str,
    Meta(description=f"Up to {LONGEST_TEXT_CHARS:,} characters, unless the service is set otherwise."),
]


class Request(Struct, forbid_unknown_fields=True):
    """What a client sends: an unknown field is an error, never ignored."""


class Nothing(Request, kw_only=True):
    """A request that says all in its path."""


def plain(value: JSON) -> Any:
    """Return the Python value of a JSON text."""
    return decode(value)
