"""An answer on its way to the client: its head goes out with what follows it, in one piece."""

import asyncio

_CHUNKED = b"transfer-encoding: chunked\r\n"


class Answer(asyncio.Transport):
    """What one answer is written to.

    uvicorn writes the head of an answer and then its body, and uvloop sends at once whatever is written: that
    is two system calls and two packets, and the client wakes up twice. So the head is held until the next
    write, or until the event loop has nothing else to do just now: one that is followed by nothing yet, as of
    a stream, does not wait for it.

    Args:
        transport: The connection's.
    """

    __slots__ = ("_flush", "_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._flush: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """Send this, or hold it, if it is the head."""
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
        """Close the connection, once all is sent."""
        self._send_head()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or will be."""
        return self._transport.is_closing()

    def _send_head(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""


class UnchunkedAnswer(Answer):
    """What an answer to HTTP/1.0 is written to, which knows no chunks: it ends with its connection."""

    __slots__ = ("_is_chunked",)

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """Send this, without what uvicorn puts around a chunk."""
        if self._flush is None:
            self._is_chunked = _CHUNKED in data
            data = data.replace(_CHUNKED, b"")
        elif self._is_chunked:
            size, _, rest = data.partition(b"\r\n")
            data = rest[: int(size or b"0", 16)]
        super().write(data)
