"""Requests that offer another protocol and have a body, as the first of Java's HTTP client (`Upgrade: h2c`).

Nothing but HTTP/1.1 is spoken here, so such a request is answered like any other. But httptools stops parsing
at its head, and would take its body for the other protocol. A second parser goes on from there: it first gets
a head of ours that has the same framing, and asks for nothing else.
"""

from typing import Any

from httptools import HttpRequestParser

Headers = list[tuple[bytes, bytes]]

_FRAMING = (b"content-length", b"transfer-encoding")


def has_body(headers: Headers) -> bool:
    """Return whether a request with such headers has a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and bool(value.strip(b"0")))
        for name, value in headers
    )


def parser_of_rest(protocol: Any, headers: Headers) -> HttpRequestParser:
    """Return a parser that stands at the beginning of a body.

    Args:
        protocol: Gets what the parser finds.
        headers: Those of the request.
    """
    follower = _Follower(protocol)
    parser = HttpRequestParser(follower)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    framing = b"".join(b"%b: %b\r\n" % header for header in headers if header[0] in _FRAMING)
    parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
    follower.follows = True
    return parser


class _Follower:
    """Passes on what a parser finds, but for the head that it begins with."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self.follows = False
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if self.follows:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.follows:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.follows:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.follows:
            self._protocol.on_headers_complete()
