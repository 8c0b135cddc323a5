"""/docs and /openapi.json: the API's page, all of it served from here, so that it needs no internet."""

from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Controller, Litestar, Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from broker.api.access import anyone
from broker.api.description import describe

_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript"}
_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "start.js")

# A page runs the scripts that are served beside it and no other, loads from here only, and is shown in no
# other page. Swagger UI writes styles into its elements, and has images in its style sheet.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Docs(Controller):
    """The description of the API for programs, and the page for people."""

    include_in_schema = False

    @get("/openapi.json", guards=[anyone])
    async def openapi(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The description as OpenAPI 3.1."""
        return Response(_described(request.app), media_type="application/json")

    @get("/docs", guards=[anyone])
    async def page(self) -> Response[bytes]:
        """The page; it reads the description by itself."""
        return Response(_asset("index.html"), media_type="text/html", headers=PAGE_HEADERS)

    @get("/docs/assets/{name:str}", guards=[anyone])
    async def asset(self, name: FromPath[str]) -> Response[bytes]:
        """A part of the page."""
        if name not in _ASSETS:
            raise NotFoundException
        return Response(_asset(name), media_type=_MEDIA_TYPES[name.rpartition(".")[2]])


@cache
def _described(app: Litestar) -> bytes:
    return msgspec.json.encode(describe(app))


@cache
def _asset(name: str) -> bytes:
    return (files("broker") / "web" / "docs" / name).read_bytes()
