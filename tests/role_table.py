"""The table of roles in the README, made from the guards: `python -m tests.role_table` writes it there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from litestar import Litestar
from litestar.routes import HTTPRoute

from broker.api.access import Allow, Anyone, Reach
from broker.app import create_app, create_service
from broker.settings import Settings

README = Path(__file__).parents[1] / "README.md"
COLUMNS = {"submitter": "submitter", "tool": "tool", "token": "a tool's token", "assigner": "assigner"}
COLUMNS |= {"operator": "operator", "admin": "admin"}
CELLS = {None: "", Reach.ALL: "yes", Reach.OWN: "own"}
GROUPS = ["/v1/tools", "/v1/tasks", "/v1/candidates", "/v1/work", "/v1/archive", "/"]
METHODS = ["POST", "GET", "PUT", "PATCH", "DELETE"]
PLACE = re.compile(r"(?<=<!-- roles -->\n).*?(?=\n<!-- end of roles -->)", re.DOTALL)


def table(app: Litestar) -> str:
    """Every call that takes a key, and which role may make it."""
    head = ["call", *COLUMNS.values()]
    lines = [_line(head), _line(["---"] * len(head))]
    for call, guard in sorted(_calls(app), key=_place):
        lines.append(_line([f"`{call}`", *(CELLS[guard.roles.get(role)] for role in COLUMNS)]))
    return "\n".join(lines)


def _calls(app: Litestar) -> Iterator[tuple[str, Allow]]:
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        for handler in route.route_handlers:
            guards = handler.resolve_guards()
            if not guards or isinstance(guards[0], Anyone) or not handler.resolve_include_in_schema():
                continue
            for method in handler.http_methods:
                yield f"{method} {route.path_format}", cast("Allow", guards[0])


def _place(call: tuple[str, Allow]) -> tuple[int, str, int]:
    """Where a call stands: by its group, its path and its method."""
    method, path = call[0].split()
    group = next(place for place, name in enumerate(GROUPS) if path.startswith(name))
    return group, path, METHODS.index(method)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def the_app() -> Litestar:
    """The application, not running."""
    return create_app(create_service(Settings(database_url="postgresql://nobody@127.0.0.1/none")))


if __name__ == "__main__":
    README.write_text(PLACE.sub(lambda _: table(the_app()), README.read_text()))
