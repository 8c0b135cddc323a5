"""The table of roles in the README: `python -m tests.support.role_table` generates it from the guards."""

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
    """Return the Markdown table of all operations that need a key, with the roles that may use them."""
    head = ["call", *COLUMNS.values()]
    lines = [_line(head), _line(["---"] * len(head))]
    for call in sorted(operations(app), key=_sort_key):
        if call.roles:
            cells = (CELLS[call.roles.get(role)] for role in COLUMNS)
            lines.append(_line([f"`{call.method} {call.path}`", *cells]))
    return "\n".join(lines)


def _sort_key(call: Operation) -> tuple[int, str, int]:
    """Return the sort key of an operation: its group, path and method."""
    group = next(position for position, name in enumerate(GROUPS) if call.path.startswith(name))
    return group, call.path, METHODS.index(call.method)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def make_app() -> Litestar:
    """Create the application without running it."""
    return create_app(create_service(Settings(database_url="postgresql://nobody@127.0.0.1/none")))


if __name__ == "__main__":
    README.write_text(PLACE.sub(lambda _: table(make_app()), README.read_text()))
