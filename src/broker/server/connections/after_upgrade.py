"""Parse the body of a request that offers another protocol (`Upgrade: h2c`), as Java's HTTP client does.

The server supports only HTTP/1.1 and handles such a request like any other. But httptools stops parsing after
the head, because it assumes that the body belongs to the other protocol. So a second parser continues. It
first gets a head with the same framing and without `Upgrade`.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from httptools import HttpRequestParser

from broker.server.connections.head import Headers

_FRAMING = (b"content-length", b"transfer-encoding")
_OF_HEAD = ("on_message_begin", "on_url", "on_header", "on_headers_complete")


def has_body(headers: Headers) -> bool:
    """Return whether a request with these headers has a body."""
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
    has_head = False

    def unless_of_own_head(callback: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: bytes) -> None:
            if has_head:
                callback(*arguments)

        return call

    callbacks = {name: unless_of_own_head(getattr(protocol, name)) for name in _OF_HEAD}
    parser = HttpRequestParser(
        SimpleNamespace(
            **callbacks, on_body=protocol.on_body, on_message_complete=protocol.on_message_complete
        )
    )
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    framing = b"".join(b"%b: %b\r\n" % header for header in headers if header[0] in _FRAMING)
    parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
    has_head = True
    return parser
