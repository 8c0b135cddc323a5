"""Generate the reference page about roles from the guards: which role may send which request."""

from broker.http.guards import Reach
from broker.http.openapi_operations import Operation, operations
from broker.schemas.keys import ROLES
from tests.support.description import make_app
from tests.support.reference import layout
from tests.support.reference.layout import code, table

COLUMNS = {"submitter": "submitter", "tool": "tool", "token": "a tool's token"} | {
    role: role for role in ROLES
}
_CELLS = {None: "", Reach.ALL: "yes", Reach.OWN: "own"}
_GROUPS = [
    "/v1/tools",
    "/v1/tasks",
    "/v1/candidates",
    "/v1/work",
    "/v1/archive",
    "/v1/overview",
    "/v1/keys",
    "/",
]
_METHODS = ["POST", "GET", "PUT", "PATCH", "DELETE"]


def page() -> str:
    """Return the reference page about roles, as Markdown."""
    app = make_app()
    requests = [request for request in sorted(operations(app), key=_position) if request.roles]
    return layout.page(
        "Roles",
        "A key has one or more roles. To create and revoke keys, see [Keys and roles](../operate/keys.md)."
        " While there are no keys, every request is allowed, but only from the machine of the service.",
        table(["role", "a key with this role"], [(code(role), text) for role, text in ROLES.items()]),
        "A tool receives a token of its own when it registers. The token allows the requests of that tool and"
        " nothing else.",
        "## Requests by role",
        "“own” means: tasks that the key submitted, or tools that the key registered and their work.",
        table(
            ["request", *COLUMNS.values()],
            [
                (
                    code(f"{request.method} {request.path}"),
                    *(_CELLS[request.roles.get(role)] for role in COLUMNS),
                )
                for request in requests
            ],
        ),
    )


def _position(request: Operation) -> tuple[int, str, int]:
    """Sort by group, path and method."""
    group = next(place for place, name in enumerate(_GROUPS) if request.path.startswith(name))
    return group, request.path, _METHODS.index(request.method)
