"""/capacity: a page that computes what a load needs."""

from typing import Any

from litestar import Controller, Request, Response, get
from litestar.params import FromPath

from broker.http.assets import asset
from broker.http.guards import anyone

_FOLDER = "capacity"


class CapacityController(Controller):
    """The page, which knows nothing of this service."""

    path = "/capacity"
    include_in_schema = False

    @get(guards=[anyone])
    async def page(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The page."""
        return asset(_FOLDER, "index.html").answer(request)

    @get("/{path:path}", guards=[anyone])
    async def asset(self, request: Request[Any, Any, Any], path: FromPath[str]) -> Response[bytes]:
        """A part of it."""
        return asset(_FOLDER, path.lstrip("/")).answer(request)
