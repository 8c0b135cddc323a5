"""The URL of a broker, and the parts of its paths."""

import os
from urllib.parse import quote

DEFAULT_URL = "http://127.0.0.1:8000"


def url_of_broker(url: str | None) -> str:
    """Return the URL that a client uses.

    Args:
        url: The given URL. If it is None or empty, `BROKER_URL` counts, and without that the local broker.
    """
    return (url or os.environ.get("BROKER_URL") or DEFAULT_URL).rstrip("/")


def in_path(id_: object) -> str:
    """Return an id as a segment of a path.

    A text that cannot be one segment (empty, only dots, with a slash) becomes an id that does not exist, so
    that the broker responds with `task_not_found` or the like instead of `not_found`.
    """
    text = str(id_)
    return quote(text, safe="~:") if text.strip(".") and "/" not in text else quote(" ")
