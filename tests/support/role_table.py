"""The table of roles in the README, from the guards: `python -m tests.support.role_table` writes it there."""

import re

from litestar import Litestar

from broker.app import create_app, create_service
from broker.http.guards import Reach
from broker.http.openapi_operations import Operation, operations
from broker.schemas.keys import ROLES
from broker.settings import Settings
from tests import ROOT

README = ROOT / "README.md"
COLUMNS = {role: role for role in ROLES}
COLUMNS = {"submitter": "submitter", "tool": "tool", "token": "a tool's token"} | COLUMNS
CELLS = {None: "", Reach.ALL: "yes", Reach.OWN: "own"}
GROUPS = [
    "/v1/tools",
    "/v1/tasks",
    "/v1/candidates",
    "/v1/work",
    "/v1/archive",
    "/v1/overview",
    "/v1/keys",
    "/",
]
METHODS = ["POST", "GET", "PUT", "PATCH", "DELETE"]
PLACE = re.compile(r"(?<=<!-- roles -->\n).*?(?=\n<!-- end of roles -->)", re.DOTALL)


def table(app: Litestar) -> str:
    """Every call that takes a key, and which role may make it."""
    head = ["call", *COLUMNS.values()]
    lines = [_line(head), _line(["---"] * len(head))]
    for call in sorted(operations(app), key=_place):
        if call.roles:
            cells = (CELLS[call.roles.get(role)] for role in COLUMNS)
            lines.append(_line([f"`{call.method} {call.path}`", *cells]))
    return "\n".join(lines)


def _place(call: Operation) -> tuple[int, str, int]:
    """Where a call stands: by its group, its path and its method."""
    group = next(place for place, name in enumerate(GROUPS) if call.path.startswith(name))
    return group, call.path, METHODS.index(call.method)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def make_app() -> Litestar:
    """The application, not running."""
    return create_app(create_service(Settings(database_url="postgresql://nobody@127.0.0.1/none")))


if __name__ == "__main__":
    README.write_text(PLACE.sub(lambda _: table(make_app()), README.read_text()))
