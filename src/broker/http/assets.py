"""Pages for people, and what they are made of: served from here, so that they need no internet."""

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Any

from litestar import Request, Response
from litestar.exceptions import NotFoundException
from litestar.status_codes import HTTP_304_NOT_MODIFIED

_MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}

# A page runs the scripts that are served beside it and no other, loads from here only, and is shown in no
# other page. Swagger UI has images in its style sheet.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Asset:
    """A file that is part of a page.

    Args:
        name: What it is called.
        content: What it holds.
    """

    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._media_type = _MEDIA_TYPES[PurePosixPath(name).suffix]
        self._tag = f'"{sha256(content).hexdigest()[:32]}"'

    def answer(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The file, or that the browser has it already."""
        # Asked for anew each time, and mostly answered in a line: so an upgrade is seen at once.
        headers = {"Cache-Control": "no-cache", "ETag": self._tag}
        if self._media_type == "text/html":
            headers |= PAGE_HEADERS
        if self._tag in request.headers.get("if-none-match", ""):
            return Response(b"", status_code=HTTP_304_NOT_MODIFIED, headers=headers)
        return Response(self._content, media_type=self._media_type, headers=headers)


@cache
def assets(folder: str) -> Mapping[str, Asset]:
    """The files of a folder of `broker.web`, by what they are called below it.

    Only what is here can be asked for, however its name is written.
    """
    found = _files(files("broker") / "web" / folder)
    return {name: Asset(name, file.read_bytes()) for name, file in found}


def asset(folder: str, name: str) -> Asset:
    """A file of a folder of `broker.web`.

    Raises:
        NotFoundException: There is no such file.
    """
    if (found := assets(folder).get(name)) is None:
        raise NotFoundException
    return found


def _files(folder: Traversable, path: str = "") -> list[tuple[str, Traversable]]:
    """All files of a folder that are part of a page, by what they are called below it."""
    found = []
    for each in folder.iterdir():
        if each.is_dir():
            found += _files(each, f"{path}{each.name}/")
        elif PurePosixPath(each.name).suffix in _MEDIA_TYPES:
            found.append((path + each.name, each))
    return found
