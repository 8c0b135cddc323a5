"""Parse the parameters in paths and queries."""

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
from broker.http.json_limits import json_problem
from broker.schemas.limits import LONGEST_WAIT_SECONDS, MOST_ON_PAGE
from broker.schemas.problems import FieldError
from broker.schemas.values import ID_PATTERN, Time
from broker.settings import Settings

_ID = re.compile(ID_PATTERN)

LIMIT = "Maximum number of items. A page with large items may be shorter: continue until `next` is null."
Limit = Annotated[int, QueryParameter(ge=1, le=MOST_ON_PAGE, description=LIMIT)]
After = Annotated[
    str | None, QueryParameter(description="The `next` of the previous page. Omit it to get the first page.")
]
Wait = Annotated[
    float | None,
    QueryParameter(
        ge=0,
        le=float(LONGEST_WAIT_SECONDS),
        description="If there is nothing to return yet, wait up to this many seconds. `Prefer: wait=N`"
        " does the"
        " same.",
    ),
]
Force = Annotated[bool, QueryParameter(description="True: do not wait for unfinished work. It ends at once.")]
TaskIdFilter = Annotated[
    str | None, QueryParameter(pattern=ID_PATTERN, description="Only items of the task with this id.")
]
ToolIdFilter = Annotated[
    str | None, QueryParameter(pattern=ID_PATTERN, description="Only items of the tool with this id.")
]

# The OpenAPI schema of a text that is a time.
TIME = {"format": "date-time"}
Since = Annotated[
    str | None, QueryParameter(description="Only items that ended at this time or later.", schema_extra=TIME)
]
Until = Annotated[
    str | None, QueryParameter(description="Only items that ended before this time.", schema_extra=TIME)
]


def extra_response(body: type | None, description: str) -> ResponseSpec:
    """Return an additional response of an operation, for the OpenAPI document."""
    return ResponseSpec(body, description=description)


def work_id_of(text: str) -> UUID:
    """Return the id of work in a path.

    Raises:
        WorkNotFound: The text is not a UUID.
    """
    try:
        return UUID(text)
    except ValueError:
        raise WorkNotFound from None


def id_of(text: str, missing: type[NotFound]) -> str:
    """Return the id of a task, tool or key in a path.

    Raises:
        NotFound: The text is not a valid id. The error is an instance of `missing`.
    """
    if _ID.match(text) is None:
        raise missing
    return text


def json_parameter(text: str | None, field: str, limits: Settings) -> str | None:
    """Return a JSON value in a query.

    Raises:
        ValidationFailed: It is not JSON, or PostgreSQL cannot store it.
    """
    if text is None:
        return None
    not_json = ValidationFailed([FieldError(field=field, message="is not JSON in UTF-8")])
    if "\ufffd" in text:  # Litestar's replacement for invalid UTF-8
        raise not_json
    try:
        value = msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise not_json from None
    if problem := json_problem(bytes(value), limits, matched=True):
        raise ValidationFailed([FieldError(field=field, message=problem)])
    return text


def time_parameter(text: str | None, field: str) -> datetime | None:
    """Return a time in a query.

    Raises:
        ValidationFailed: It is not a time, or has no offset.
    """
    if text is None:
        return None
    try:
        # An unescaped plus sign is decoded as a space.
        return msgspec.convert(text.replace(" ", "+"), Time).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        message = "is not a time with an offset (RFC 3339), such as 2026-07-02T09:30:00Z"
        raise ValidationFailed([FieldError(field=field, message=message)]) from None


async def check_query(request: Request[Any, Any, Any]) -> None:
    """Check the parameter names in a query. The broker must not ignore a misspelt or repeated parameter.

    Raises:
        ValidationFailed: A parameter is unknown, repeated or null.
    """
    if not request.url.query:
        return
    if errors := list(_query_errors(request)):
        raise ValidationFailed(errors)


def _query_errors(request: Request[Any, Any, Any]) -> Iterator[FieldError]:
    known = _in_query(request.route_handler)
    for name, values in request.query_params.dict().items():
        if name not in known:
            yield FieldError(field=name, message="is not a parameter of this request")
        elif len(values) > 1:
            yield FieldError(field=name, message="is given more than once")
        elif values == ["null"] and str not in known[name]:
            # Litestar would treat the text `null` like a missing parameter.
            yield FieldError(field=name, message="must not be null; omit it instead")


@cache
def parameters(handler: BaseRouteHandler) -> dict[str, str]:
    """Return the name in the query or path of each argument of a handler."""
    fields = handler.parsed_fn_signature.parameters
    return {name: getattr(field.kwarg_definition, "name", None) or name for name, field in fields.items()}


@cache
def _in_query(handler: BaseRouteHandler) -> dict[str, tuple[Any, ...]]:
    """Return the types of each query parameter of a handler, by its name in the query."""
    fields = handler.parsed_fn_signature.parameters
    return {
        name: (fields[argument].annotation, *get_args(fields[argument].annotation))
        for argument, name in parameters(handler).items()
        if isinstance(fields[argument].kwarg_definition, QueryParameter)
    }
