"""Responses of the health checks."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class Alive(Struct, kw_only=True):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(Struct, kw_only=True):
    """Whether the service can do its job; where not, the check that failed says why."""

    status: Literal["ready", "unready"]
    checks: Annotated[dict[str, str], Meta(description="`ok`, or what is wrong.")]
    causes: Annotated[
        list[str],
        Meta(description="Errors that PostgreSQL reported lately; one request alone can cause some of them."),
    ] = []
