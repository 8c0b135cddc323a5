"""OPTIONS: what an address can be asked."""

from typing import Any

from litestar import Request, Response
from litestar.enums import HttpMethod
from litestar.routes import HTTPRoute
from litestar.status_codes import HTTP_204_NO_CONTENT


def answer_options(request: Request[Any, Any, Any]) -> Response[None] | None:
    """The methods that an address takes, if that is what is asked.

    Litestar's own answer knows of the handler only that was registered first.
    """
    if request.method != HttpMethod.OPTIONS:
        return None
    address = request.scope["path_template"]
    methods = {
        method
        for route in request.app.routes
        if isinstance(route, HTTPRoute) and route.path_format == address
        for method in route.methods
    }
    return Response(None, status_code=HTTP_204_NO_CONTENT, headers={"Allow": ", ".join(sorted(methods))})
