"""The dashboard: a page at / that shows running work, waiting tasks and the history.

The page contains no data. It reads all data from the public API, with the key that its user enters.
"""

from functools import cache
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get
from litestar.params import FromPath

from broker.http.assets import Asset, asset
from broker.http.guards import anyone
from broker.schemas.limits import ASSIGNER_ABSENT_SECONDS
from broker.schemas.states import OUTCOMES, STATES, TOOL_STATES, WORK_STATES

_FOLDER = "dashboard"
_CONSTANTS = "constants.js"


class DashboardController(Controller):
    """The dashboard."""

    include_in_schema = False

    @get("/", guards=[anyone])
    async def page(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return the page of the dashboard."""
        return asset(_FOLDER, "index.html").response(request)

    @get("/dashboard/{path:path}", guards=[anyone])
    async def asset(self, request: Request[Any, Any, Any], path: FromPath[str]) -> Response[bytes]:
        """Return a file that the page loads."""
        name = path.lstrip("/")
        return (_constants() if name == _CONSTANTS else asset(_FOLDER, name)).response(request)


@cache
def _constants() -> Asset:
    """Return the JavaScript module with the constants that the page shares with the service."""
    constants = {
        "ASSIGNER_ABSENT_SECONDS": ASSIGNER_ABSENT_SECONDS,
        "OUTCOMES": OUTCOMES,
        "STATES": STATES,
        "TOOL_STATES": TOOL_STATES,
        "WORK_STATES": WORK_STATES,
    }
    lines = (
        f"export const {name} = {msgspec.json.encode(value).decode()};\n" for name, value in constants.items()
    )
    return Asset(_CONSTANTS, "".join(lines).encode())
