"""Respond to OPTIONS requests with the methods of a path."""

from typing import Any

from litestar import Request, Response
from litestar.enums import HttpMethod
from litestar.routes import HTTPRoute
from litestar.status_codes import HTTP_204_NO_CONTENT


def options_response(request: Request[Any, Any, Any]) -> Response[None] | None:
    """Return a response with the methods of the path, or None if it is not an OPTIONS request.

    Litestar's own response lists only the method of the handler that was registered first.
    """
    if request.method != HttpMethod.OPTIONS:
        return None
    template = request.scope["path_template"]
    methods = {
        method
        for route in request.app.routes
        if isinstance(route, HTTPRoute) and route.path_format == template
        for method in route.methods
    }
    return Response(None, status_code=HTTP_204_NO_CONTENT, headers={"Allow": ", ".join(sorted(methods))})
