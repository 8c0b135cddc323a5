"""Requests of a connection, in the forms that the transport and httpx need."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from broker.client.http_client import silence

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# httpx would not change any character of such a path.
_PATH = re.compile(r"(?:/(?!\.)(?:[A-Za-z0-9._~:-]|%[0-9A-Fa-f]{2})+)+")
_HEADER = re.compile(r"[!-~](?:[ -~]*[!-~])?")


class BrokerRequest(NamedTuple):
    """A request to the broker.

    Args:
        method: The HTTP method.
        path: The path after the URL of the broker.
        query: The query parameters. Those that are None are omitted.
        content: The body, or None.
        headers: The headers that only this request has.
        silent_seconds: How long, in seconds, the server may neither accept nor send anything.
    """

    method: str
    path: str
    query: Mapping[str, Any] | None
    content: bytes | None
    headers: Mapping[str, str]
    silent_seconds: float

    def head(self, base_path: str, common: bytes) -> bytes | None:
        """Return the first line and the headers as they are sent.

        Args:
            base_path: The path of the broker's URL.
            common: The headers that all requests to the broker have.

        Returns:
            The bytes, or None if only httpx knows how to encode the request.
        """
        is_plain = self.method in _METHODS and _PATH.fullmatch(self.path)
        if not is_plain or not all(map(_HEADER.fullmatch, self.headers.values())):
            return None
        target = base_path + self.path
        if parameters := self.parameters:
            target += f"?{httpx.QueryParams(parameters)}"
        lines = [f"{self.method} {target} HTTP/1.1\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in self.headers.items()]
        if self.content is not None or self.method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(self.content or b'')}\r\n")
        return "".join(lines).encode() + common

    @property
    def parameters(self) -> dict[str, Any]:
        """The query parameters that are not None."""
        return {name: value for name, value in (self.query or {}).items() if value is not None}

    def for_httpx(self, http: httpx.AsyncClient) -> httpx.Request:
        """Return the request in the form that httpx needs."""
        return http.build_request(
            self.method,
            self.path,
            params=self.parameters,
            content=self.content,
            headers=self.headers,
            timeout=silence(self.silent_seconds),
        )
