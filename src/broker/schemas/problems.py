"""Errors in responses (RFC 9457)."""

from typing import Annotated, Literal, get_args

from msgspec import UNSET, Meta, Struct, UnsetType


class FieldError(Struct, kw_only=True):
    """An invalid field or parameter, and what is wrong with it."""

    field: Annotated[
        str,
        Meta(description="Name of the field or parameter. In a batch: `items[13].needs`, counted from 0."),
    ]
    message: Annotated[
        str, Meta(description="What is wrong. The text continues the name: `needs` “is missing”.")
    ]


#: The codes of all problems. Each class of `broker.errors` has one of them.
ErrorCode = Literal[
    "validation_failed",
    "malformed_json",
    "malformed_request",
    "not_found",
    "method_not_allowed",
    "request_timeout",
    "task_not_found",
    "tool_not_found",
    "work_not_found",
    "conflict",
    "task_unavailable",
    "tool_unavailable",
    "tool_busy",
    "work_ended",
    "task_ended",
    "key_exists",
    "key_not_found",
    "nothing_to_accept",
    "cursor_expired",
    "payload_too_large",
    "unsupported_media_type",
    "headers_too_large",
    "unauthenticated",
    "forbidden",
    "too_many_requests",
    "unavailable",
    "internal",
]
#: Clients recognize the problems of the broker by their codes.
ERROR_CODES = frozenset(get_args(ErrorCode))


class Problem(Struct, kw_only=True, omit_defaults=True):
    """An error (RFC 9457) with a stable `code` for programs."""

    type: Annotated[str, Meta(description="Always `about:blank`. Programs use `code` instead.")]
    title: Annotated[str, Meta(description="The kind of error in a few words.")]
    status: Annotated[int, Meta(description="The HTTP status of the response.")]
    detail: Annotated[str, Meta(description="What happened and what to do, for people.")]
    instance: Annotated[str, Meta(description="The path of the request.")]
    code: Annotated[str, Meta(description="The kind of error, for programs. It never changes.")]
    errors: (
        Annotated[list[FieldError], Meta(description="Every invalid field, if some are invalid.")] | UnsetType
    ) = UNSET
    outcome: (
        Annotated[str, Meta(description="Only with the code `work_ended`: the outcome of the work.")]
        | UnsetType
    ) = UNSET
