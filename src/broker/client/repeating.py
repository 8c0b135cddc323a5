"""Which requests can be repeated, and how long to wait before that."""

from http import HTTPStatus

import httpx
import msgspec

from broker.client.responses import ForeignResponseError

_LONGEST_RETRY_AFTER_SECONDS = 600.0
# What makes something new with every call, unless that has an id of its client's.
_MAKES_NEW = ("/v1/tasks", "/v1/tools", "/v1/keys", "/reports")
# With these errors nothing of the request has reached the broker.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class _Named(msgspec.Struct):
    """Of a body: its id, or those of its items."""

    id: str | None = None
    items: list["_Named"] = []


def repeatable(method: str, path: str, body: bytes | None) -> bool:
    """Whether a call can be made again though it may have been heard, and its answer lost.

    Args:
        method: Its method; all but some POST can.
        path: Its path.
        body: Its body, as JSON; what is to be made anew, or each of its items, needs an id.
    """
    collection = path.removesuffix("/batch")
    if method != "POST" or not collection.endswith(_MAKES_NEW):
        return True
    try:
        named = msgspec.json.decode(body or b"{}", type=_Named)
    except msgspec.ValidationError:
        return False
    return all(item.id is not None for item in ([named] if collection == path else named.items))


def is_unheard(error: httpx.TransportError) -> bool:
    """Return whether nothing of a request has reached the broker."""
    if isinstance(error, ForeignResponseError):
        return error.response.status_code == HTTPStatus.TOO_MANY_REQUESTS
    return isinstance(error, _NOT_SENT)


def retry_after(response: httpx.Response) -> float:
    """How long the broker asks to wait; something between us and it may say so in other words."""
    try:
        return min(max(0.0, float(response.headers.get("Retry-After", 0))), _LONGEST_RETRY_AFTER_SECONDS)
    except ValueError:
        return 0.0


def trouble_of(error: httpx.TransportError) -> tuple[str, float]:
    """Return what keeps a request from the broker, for people, and how long to wait at least."""
    if isinstance(error, ForeignResponseError):
        return f"does not respond: {error}", retry_after(error.response)
    return f"cannot be reached: {error!r}", 0.0
