"""The URL of a broker, and ids in its paths."""

import os
from urllib.parse import quote

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"


def url_of_broker(url: str | None) -> str:
    """Return the URL that a client uses; if none is given, `BROKER_URL`, or else that of the local broker."""
    return (url or os.environ.get("BROKER_URL") or DEFAULT_URL).rstrip("/")


def parsed(url: str) -> httpx.URL:
    """Return the parts of a URL; raise ValueError or httpx.InvalidURL if it is not valid."""
    parts = httpx.URL(url)
    if not has_port(parts):
        raise ValueError(f"there is no port {parts.port}")
    return parts


def has_port(url: httpx.URL) -> bool:
    """Return whether the port of a URL is valid; httpx accepts any number."""
    return url.port is None or 0 < url.port < 2**16


def in_path(id_: object) -> str:
    """Return an id as a segment of a path.

    A text that cannot be one segment (empty, only dots, with a slash) becomes an id that does not exist, so
    that the broker responds with `task_not_found` or the like instead of `not_found`.
    """
    text = str(id_)
    return quote(text, safe="~:") if text.strip(".") and "/" not in text else quote(" ")
