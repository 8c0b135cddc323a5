"""/docs and /openapi.json: the API's page, and what it shows."""

from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Controller, Litestar, Request, Response, get
from litestar.params import FromPath

from broker.http.assets import Asset, asset
from broker.http.guards import anyone
from broker.http.openapi import describe


class DocsController(Controller):
    """The description of the API for programs, and the page for people."""

    include_in_schema = False

    @get("/openapi.json", guards=[anyone])
    async def openapi(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The description as OpenAPI 3.1."""
        return Response(_described(request.app), media_type="application/json")

    @get("/docs", guards=[anyone])
    async def page(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The page, with the description in it."""
        return _page(request.app).answer(request)

    @get("/docs/assets/{name:str}", guards=[anyone])
    async def asset(self, request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
        """A part of the page."""
        return asset("docs", name).answer(request)


@cache
def _described(app: Litestar) -> bytes:
    return msgspec.json.encode(describe(app))


@cache
def _page(app: Litestar) -> Asset:
    # A script that is data: the browser does not run it, and nothing in it ends it.
    description = _described(app).replace(b"<", rb"\u003c")
    page = (files("broker") / "web" / "docs" / "index.html").read_bytes()
    return Asset("index.html", page.replace(b"{description}", description))
