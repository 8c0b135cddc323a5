"""/docs and /openapi.json: serve the API page and the OpenAPI document."""

from functools import cache
from typing import Any

import msgspec
from litestar import Controller, Litestar, Request, Response, get
from litestar.params import FromPath

from broker.http.assets import WEB, Asset, asset
from broker.http.guards import anyone
from broker.http.openapi import describe


class DocsController(Controller):
    """The OpenAPI document and a page that shows it."""

    include_in_schema = False

    @get("/openapi.json", guards=[anyone])
    async def openapi(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return the OpenAPI document."""
        return Response(_document(request.app), media_type="application/json")

    @get("/docs", guards=[anyone])
    async def page(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return the page, which contains the document."""
        return _page(request.app).response(request)

    @get("/docs/assets/{name:str}", guards=[anyone])
    async def asset(self, request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
        """Return a file of the page."""
        return asset("docs", name).response(request)


@cache
def _document(app: Litestar) -> bytes:
    return msgspec.json.encode(describe(app))


@cache
def _page(app: Litestar) -> Asset:
    # The document is in a script element of JSON, which the browser does not run. Without a `<`, nothing in
    # the document can end the element.
    description = _document(app).replace(b"<", rb"\u003c")
    page = (WEB / "docs" / "index.html").read_bytes()
    return Asset("index.html", page.replace(b"{description}", description))
