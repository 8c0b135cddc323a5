"""Decide which requests the client may retry, and how long it waits before that."""

from http import HTTPStatus

import httpx
import msgspec

from broker.client.response_reader import ForeignResponseError

_LONGEST_RETRY_AFTER_SECONDS = 600.0
# A request to these paths creates something new each time, unless the client has given it an id.
_CREATING = ("/v1/tasks", "/v1/tools", "/v1/keys", "/reports")
# With these errors nothing of the request has reached the broker.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class _Identified(msgspec.Struct):
    """The id of a body, or those of its items."""

    id: str | None = None
    items: list["_Identified"] = []


def is_repeatable(method: str, path: str, body: bytes | None) -> bool:
    """Return whether the client may repeat a request that the broker may have processed.

    Only some POST requests cannot be repeated: if one creates something, it or each of its items needs an id.
    """
    collection = path.removesuffix("/batch")
    if method != "POST" or not collection.endswith(_CREATING):
        return True
    try:
        decoded = msgspec.json.decode(body or b"{}", type=_Identified)
    except msgspec.ValidationError:
        return False
    return all(item.id is not None for item in ([decoded] if collection == path else decoded.items))


def was_not_received(error: httpx.TransportError) -> bool:
    """Return whether nothing of a request has reached the broker."""
    if isinstance(error, ForeignResponseError):
        return error.response.status_code == HTTPStatus.TOO_MANY_REQUESTS
    return isinstance(error, _NOT_SENT)


def retry_after(response: httpx.Response) -> float:
    """Return how many seconds a response asks to wait.

    A proxy may send `Retry-After` as a date: that counts as 0.
    """
    try:
        return min(max(0.0, float(response.headers.get("Retry-After", 0))), _LONGEST_RETRY_AFTER_SECONDS)
    except ValueError:
        return 0.0


def describe_error(error: httpx.TransportError) -> tuple[str, float]:
    """Return why a request did not reach the broker, for people, and how long to wait at least."""
    if isinstance(error, ForeignResponseError):
        return f"does not respond: {error}", retry_after(error.response)
    return f"cannot be reached: {error!r}", 0.0
