"""/: the dashboard, a page that shows what runs, what waits and why, and what has happened.

It holds no data: what it shows it reads by the calls that everybody has, with the key that it is given.
"""

from typing import Any

from litestar import Controller, Request, Response, get
from litestar.params import FromPath

from broker.http.assets import asset
from broker.http.guards import anyone

_FOLDER = "dashboard"


class DashboardController(Controller):
    """The dashboard."""

    include_in_schema = False

    @get("/", guards=[anyone])
    async def page(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The page."""
        return asset(_FOLDER, "index.html").answer(request)

    @get("/dashboard/{path:path}", guards=[anyone])
    async def asset(self, request: Request[Any, Any, Any], path: FromPath[str]) -> Response[bytes]:
        """A part of it."""
        return asset(_FOLDER, path.lstrip("/")).answer(request)
