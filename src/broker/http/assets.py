"""Serve the files of web pages; the pages load nothing from the internet."""

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from litestar import Request, Response
from litestar.exceptions import NotFoundException
from litestar.status_codes import HTTP_304_NOT_MODIFIED

WEB = Path(__file__).parent.parent / "web"
_MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}

# A page runs only scripts of this service, loads only from it, and cannot be framed. Swagger UI has images in
# its style sheet.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Asset:
    """A file of a web page; its name says its media type."""

    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._media_type = _MEDIA_TYPES[Path(name).suffix]
        self._tag = f'"{sha256(content).hexdigest()[:32]}"'

    def answer(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return a response with the file, or 304 if the browser has it already."""
        # The browser revalidates the file each time, so that it sees an upgrade at once.
        headers = {"Cache-Control": "no-cache", "ETag": self._tag}
        if self._media_type == "text/html":
            headers |= PAGE_HEADERS
        if self._tag in request.headers.get("if-none-match", ""):
            return Response(b"", status_code=HTTP_304_NOT_MODIFIED, headers=headers)
        return Response(self._content, media_type=self._media_type, headers=headers)


@cache
def assets(folder: str) -> Mapping[str, Asset]:
    """Return the files of a folder of `broker.web`, by their relative paths.

    No path can lead to another file, because each is looked up here.
    """
    root = WEB / folder
    return {
        path.relative_to(root).as_posix(): Asset(path.name, path.read_bytes())
        for path in root.rglob("*")
        if path.suffix in _MEDIA_TYPES
    }


def asset(folder: str, name: str) -> Asset:
    """Return a file of a folder of `broker.web`.

    Raises:
        NotFoundException: There is no such file.
    """
    if (file := assets(folder).get(name)) is None:
        raise NotFoundException
    return file
