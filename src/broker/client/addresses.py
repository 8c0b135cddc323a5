"""URLs of brokers, and ids as parts of their paths."""

import os
from urllib.parse import quote

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"


def url_of_broker(url: str | None) -> str:
    """Return the URL of the broker, without a slash at its end.

    Without a URL, the function returns `BROKER_URL`, or the URL of a broker on this machine.
    """
    return (url or os.environ.get("BROKER_URL") or DEFAULT_URL).rstrip("/")


def parsed(url: str) -> httpx.URL:
    """Return the parts of a URL.

    Raises:
        ValueError: The port is not valid.
        httpx.InvalidURL: The URL is not valid.
    """
    parts = httpx.URL(url)
    if not has_port(parts):
        raise ValueError(f"port {parts.port} does not exist; use a port from 1 to 65535")
    return parts


def has_port(url: httpx.URL) -> bool:
    """Return whether the port of a URL is valid; httpx accepts any number."""
    return url.port is None or 0 < url.port < 2**16


def in_path(id_: object) -> str:
    """Return an id as one segment of a path.

    An empty string, dots alone and a string with a slash cannot be a segment. They become an id that does not
    exist. The broker then responds with a code like `task_not_found` instead of `not_found`.
    """
    text = str(id_)
    return quote(text, safe="~:") if text.strip(".") and "/" not in text else quote(" ")
