"""What comes in the path and the query, and how it is read."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, get_args
from uuid import UUID

import msgspec
from litestar import Request
from litestar.handlers import BaseRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from broker.errors import NotFound, ValidationFailed, WorkNotFound
from broker.http.json_limits import JsonLimits, json_problem
from broker.schemas.limits import LONGEST_WAIT_SECONDS, MOST_ON_PAGE
from broker.schemas.problems import FieldError
from broker.schemas.values import ID_PATTERN, Time

_ID = re.compile(ID_PATTERN)

LIMIT = "The most items to return. Large items make a page shorter: read on while `next` is not null."
Limit = Annotated[int, QueryParameter(ge=1, le=MOST_ON_PAGE, description=LIMIT)]
After = Annotated[str | None, QueryParameter(description="The last answer's `next`, to go on from there.")]
Wait = Annotated[
    float | None,
    QueryParameter(
        ge=0,
        le=float(LONGEST_WAIT_SECONDS),
        description="Wait up to this many seconds for something to say. `Prefer: wait=N` means the same.",
    ),
]
Force = Annotated[bool, QueryParameter(description="At once, and whatever is under way.")]
IdFilter = Annotated[str | None, QueryParameter(pattern=ID_PATTERN)]

# What the description says of a text that is a time.
TIME = {"format": "date-time"}
Since = Annotated[str | None, QueryParameter(description="Ended then or later.", schema_extra=TIME)]
Until = Annotated[str | None, QueryParameter(description="Ended before.", schema_extra=TIME)]


def also(answer: type | None, description: str) -> ResponseSpec:
    """A second answer of a call, for its description."""
    return ResponseSpec(answer, description=description)


def work_id_of(text: str) -> UUID:
    """A work's id from the path; what is no UUID is nobody's.

    Raises:
        WorkNotFound: It is no UUID.
    """
    try:
        return UUID(text)
    except ValueError:
        raise WorkNotFound from None


def id_of(text: str, otherwise: type[NotFound]) -> str:
    """A task's or tool's id from the path; what cannot be an id is nobody's.

    Raises:
        NotFound: It cannot be an id; of the kind in `otherwise`.
    """
    if _ID.match(text) is None:
        raise otherwise
    return text


def json_parameter(text: str | None, field: str, limits: JsonLimits) -> str | None:
    """A JSON value from the query.

    Raises:
        ValidationFailed: It is not JSON that PostgreSQL can hold.
    """
    if text is None:
        return None
    not_json = ValidationFailed([FieldError(field=field, message="is not JSON in UTF-8")])
    if "\ufffd" in text:  # what an address turns into that is not UTF-8
        raise not_json
    try:
        value = msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise not_json from None
    if problem := json_problem(bytes(value), limits, matched=True):
        raise ValidationFailed([FieldError(field=field, message=problem)])
    return text


def time_parameter(text: str | None, field: str) -> datetime | None:
    """A time from the query.

    Raises:
        ValidationFailed: It is no time, or has no offset.
    """
    if text is None:
        return None
    try:
        # A plus sign that was not escaped arrives as a space.
        return msgspec.convert(text.replace(" ", "+"), Time).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        message = "is no time with an offset (RFC 3339), such as 2026-07-02T09:30:00Z"
        raise ValidationFailed([FieldError(field=field, message=message)]) from None


async def refuse_odd_queries(request: Request[Any, Any, Any]) -> None:
    """A misspelt `?wiat=30` is an error, not ignored, and so is the first of two that are called the same.

    Raises:
        ValidationFailed: The query has what the handler does not take.
    """
    if not request.url.query:
        return
    if odd := list(_odd(request)):
        raise ValidationFailed(odd)


def _odd(request: Request[Any, Any, Any]) -> Iterator[FieldError]:
    taken = _in_query(request.route_handler)
    for name, values in request.query_params.dict().items():
        if name not in taken:
            yield FieldError(field=name, message="is no parameter of this call")
        elif len(values) > 1:
            yield FieldError(field=name, message="is given more than once")
        elif values == ["null"] and str not in taken[name]:
            # It would be taken for one that was left out.
            yield FieldError(field=name, message="is null; leave it out instead")


@cache
def parameters(handler: BaseRouteHandler) -> dict[str, str]:
    """What a handler takes: for the name of each argument what the query calls it."""
    fields = handler.parsed_fn_signature.parameters
    return {name: getattr(field.kwarg_definition, "name", None) or name for name, field in fields.items()}


@cache
def _in_query(handler: BaseRouteHandler) -> dict[str, tuple[Any, ...]]:
    """What a handler takes in the query: for each name the types that it may be of."""
    fields = handler.parsed_fn_signature.parameters
    return {
        name: (fields[argument].annotation, *get_args(fields[argument].annotation))
        for argument, name in parameters(handler).items()
        if isinstance(fields[argument].kwarg_definition, QueryParameter)
    }
