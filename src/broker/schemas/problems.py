"""Errors in responses (RFC 9457)."""

from typing import Annotated, Literal, get_args

from msgspec import UNSET, Meta, Struct, UnsetType


class FieldError(Struct, kw_only=True):
    """One field that was refused, and why."""

    field: Annotated[str, Meta(description="Its name, in a batch like `items[13].needs`.")]
    message: str


#: Every code that a problem of the broker may have. Each class of `broker.errors` has one of them.
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
#: A client recognizes the problems of the broker by their codes.
ERROR_CODES = frozenset(get_args(ErrorCode))


class Problem(Struct, kw_only=True, omit_defaults=True):
    """An error, as RFC 9457 has it, with a stable word for programs in `code`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: Annotated[str, Meta(description="A stable word for programs.")]
    errors: list[FieldError] | UnsetType = UNSET
    outcome: Annotated[str, Meta(description="With `work_ended`: how it ended.")] | UnsetType = UNSET
