"""Decide which requests the client may retry, and how long it waits before a retry."""

from collections.abc import Sequence
from http import HTTPStatus

import httpx
import msgspec

from broker.client.response_reader import ForeignResponseError

_LONGEST_RETRY_AFTER_SECONDS = 600.0
# A request to these paths creates something new each time, unless the body has an id.
_CREATING = ("/v1/tasks", "/v1/tools", "/v1/keys", "/reports")
# After these errors, no part of the request has reached the broker.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class _Identified(msgspec.Struct):
    """The id of a body, or those of its items."""

    id: str | None = None
    items: list["_Identified"] = []


def is_repeatable(method: str, path: str, body: bytes | None) -> bool:
    """Return whether the client may repeat a request that the broker may have processed.

    A POST request that creates something is repeatable only if it, or each of its items, has an id. All other
    requests are repeatable.
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
    """Return whether the request has certainly not reached the broker."""
    if isinstance(error, ForeignResponseError):
        return error.response.status_code == HTTPStatus.TOO_MANY_REQUESTS
    return isinstance(error, _NOT_SENT)


def retry_after(headers: httpx.Headers | Sequence[tuple[bytes, bytes]]) -> float:
    """Return the number of seconds that the `Retry-After` header of a response asks to wait.

    A date, which some proxies send, counts as 0.
    """
    try:
        seconds = float(httpx.Headers(headers).get("Retry-After", 0))
    except ValueError:
        return 0.0
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER_SECONDS)


def describe_error(error: httpx.TransportError) -> tuple[str, float]:
    """Return the reason why a request failed, for people, and the minimum delay in seconds."""
    if isinstance(error, ForeignResponseError):
        return f"did not respond: {error}", retry_after(error.response.headers)
    return f"could not be reached: {error!r}", 0.0
