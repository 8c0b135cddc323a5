"""/help: serve the documentation, which the build makes from `docs/`."""

from pathlib import PurePosixPath
from typing import Any

from litestar import Controller, Request, Response, get
from litestar.params import FromPath
from litestar.status_codes import HTTP_308_PERMANENT_REDIRECT

from broker.errors import NotFound
from broker.http.assets import assets, generated_page_headers
from broker.http.guards import anyone

_FOLDER = "help"
_INDEX = "index.html"


class HelpController(Controller):
    """The documentation of this version."""

    include_in_schema = False

    @get(["/help", "/help/{path:path}"], guards=[anyone])
    async def page(self, request: Request[Any, Any, Any], path: FromPath[str] = "") -> Response[bytes]:
        """Return a page, or a file that a page loads.

        Raises:
            NotFound: There is no such page, or this installation has no documentation.
        """
        pages = assets(_FOLDER, generated_page_headers)
        if not pages:
            raise NotFound("This installation has no documentation. In a checkout, `make docs` builds it.")
        name = PurePosixPath(path.strip("/"))
        if (file := pages.get(str(name if name.suffix else name / _INDEX))) is None:
            raise NotFound("The documentation has no such page. Open /help/ and search for it there.")
        requested = request.scope["raw_path"].decode("latin-1")
        if not (name.suffix or requested.endswith("/")):
            # The links of a page are relative to its folder.
            folder = f"{PurePosixPath(requested).name}/"
            return Response(b"", status_code=HTTP_308_PERMANENT_REDIRECT, headers={"Location": folder})
        return file.response(request)
