"""Serve the files of web pages. The pages load nothing from the internet."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from litestar import Request, Response
from litestar.exceptions import NotFoundException
from litestar.status_codes import HTTP_304_NOT_MODIFIED

WEB = Path(__file__).parent.parent / "web"
_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

# A page runs only scripts of this service, loads only from it, and cannot be framed. The `data:` images are
# in the style sheet of Swagger UI.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def generated_page_headers(page: bytes) -> Mapping[str, str]:
    """Return the headers of a page of the documentation, which Zensical generates.

    The policy allows the scripts in the page by their hashes. It allows styles, because the search inserts
    some.
    """
    hashes = (b64encode(sha256(script).digest()).decode() for script in _INLINE_SCRIPT.findall(page))
    scripts = "".join(f" 'sha256-{value}'" for value in hashes)
    policy = PAGE_HEADERS["Content-Security-Policy"]
    policy = policy.replace("script-src 'self'", f"script-src 'self'{scripts}")
    policy = policy.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
    return PAGE_HEADERS | {"Content-Security-Policy": policy}


class Asset:
    """A file of a web page. The suffix of its name determines its media type."""

    def __init__(self, name: str, content: bytes, page_headers: Mapping[str, str] = PAGE_HEADERS) -> None:
        self._content = content
        self._page_headers = page_headers
        self._media_type = _MEDIA_TYPES[Path(name).suffix]
        self._tag = f'"{sha256(content).hexdigest()[:32]}"'

    def response(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return a response with the file, or 304 if the browser already has it."""
        # The browser revalidates the file each time, to see an upgrade at once.
        headers = {"Cache-Control": "no-cache", "ETag": self._tag}
        if self._media_type == "text/html":
            headers |= self._page_headers
        if self._tag in request.headers.get("if-none-match", ""):
            return Response(b"", status_code=HTTP_304_NOT_MODIFIED, headers=headers)
        return Response(self._content, media_type=self._media_type, headers=headers)


@cache
def assets(
    folder: str, page_headers: Callable[[bytes], Mapping[str, str]] = lambda _: PAGE_HEADERS
) -> Mapping[str, Asset]:
    """Return the files of a folder of `broker.web`, by their relative paths.

    A path cannot lead to another file, because requests look up their paths here.

    Args:
        folder: The name of the folder.
        page_headers: Returns the headers for the content of a page.
    """
    root = WEB / folder
    contents = {path: path.read_bytes() for path in root.rglob("*") if path.suffix in _MEDIA_TYPES}
    return {
        path.relative_to(root).as_posix(): Asset(path.name, content, page_headers(content))
        for path, content in contents.items()
    }


def asset(folder: str, name: str) -> Asset:
    """Return a file of a folder of `broker.web`.

    Raises:
        NotFoundException: There is no such file.
    """
    if (file := assets(folder).get(name)) is None:
        raise NotFoundException
    return file
