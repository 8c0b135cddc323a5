"""Responses of the health checks."""

from typing import Annotated, Literal

from msgspec import Meta, Struct


class Alive(Struct, kw_only=True):
    """The process is running and responds."""

    status: Annotated[Literal["alive"], Meta(description="Always `alive`.")] = "alive"


class Ready(Struct, kw_only=True):
    """Readiness of the service, with the result of each check."""

    status: Annotated[
        Literal["ready", "unready"], Meta(description="`ready` if the service can handle requests.")
    ]
    checks: Annotated[
        dict[str, str],
        Meta(description="Result of each check: `ok`, or what is wrong. `database`, `schema`, `listener`."),
    ]
    causes: Annotated[
        list[str],
        Meta(description="Recent PostgreSQL errors. A single request can cause some of them."),
    ] = []
