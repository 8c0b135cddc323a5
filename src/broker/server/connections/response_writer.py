"""Write a response to the client, its head together with the beginning of its body."""

import asyncio

_CHUNKED = b"transfer-encoding: chunked\r\n"


class ResponseWriter(asyncio.Transport):
    """The transport that uvicorn writes one response to.

    uvicorn writes the head of a response and then its body, and uvloop sends each write at once. This would
    need two system calls and two packets. So the head waits for the next write, or for the next iteration of
    the event loop. The head of a stream without content is then sent alone.
    """

    __slots__ = ("_flush", "_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._flush: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """Send data. Hold it back if it is the head."""
        if self._flush is None:
            self._head = data
            self._flush = asyncio.get_running_loop().call_soon(self._send_head)
        elif self._head:
            self._flush.cancel()
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection after all data is sent."""
        self._send_head()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or closing."""
        return self._transport.is_closing()

    def _send_head(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""


class UnchunkedResponseWriter(ResponseWriter):
    """A writer for HTTP/1.0, which has no chunks. The end of the connection ends the response."""

    __slots__ = ("_is_chunked",)

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """Send data without the chunk framing that uvicorn adds."""
        if self._flush is None:
            self._is_chunked = _CHUNKED in data
            data = data.replace(_CHUNKED, b"")
        elif self._is_chunked:
            size, _, rest = data.partition(b"\r\n")
            data = rest[: int(size or b"0", 16)]
        super().write(data)
