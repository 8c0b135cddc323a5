"""Parse the body of a request that offers another protocol (`Upgrade: h2c`), as Java's HTTP client sends it.

The server supports HTTP/1.1 only and handles such a request like any other. But httptools stops parsing after
its head, because the body would belong to the other protocol. A second parser continues: it first gets a head
with the same framing and no `Upgrade`.
"""

from typing import Any

from httptools import HttpRequestParser

from broker.server.connections.head import Headers

_FRAMING = (b"content-length", b"transfer-encoding")


def has_body(headers: Headers) -> bool:
    """Return whether a request with such headers has a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and bool(value.strip(b"0")))
        for name, value in headers
    )


def parser_of_rest(protocol: Any, headers: Headers) -> HttpRequestParser:
    """Return a parser that is ready for the body of a request.

    Args:
        protocol: The receiver of the parser's callbacks.
        headers: The headers of the request.
    """
    follower = _Follower(protocol)
    parser = HttpRequestParser(follower)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    framing = b"".join(b"%b: %b\r\n" % header for header in headers if header[0] in _FRAMING)
    parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
    follower.follows = True
    return parser


class _Follower:
    """Forwards the callbacks of a parser, except those of the head that it starts with."""

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
