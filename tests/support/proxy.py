"""A way to the database that can be cut, or swallow everything without a word: a network's worst manners."""

import asyncio
import contextlib
from typing import Self

from sqlalchemy import make_url


class Proxy:
    """Passes connections on to PostgreSQL; `silence` and `cut` are what a network does to them.

    Args:
        url: The database behind it, over a socket file or TCP.
    """

    def __init__(self, url: str) -> None:
        self._behind = make_url(url)
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        """The URL of the database through this."""
        url = self._behind.set(drivername="postgresql", host="127.0.0.1", port=self.port, query={})
        return url.render_as_string(hide_password=False)

    @property
    def is_connected(self) -> bool:
        """Whether somebody is connected."""
        return bool(self._writers)

    def silence(self) -> None:
        """From now on nothing comes through, over old and new connections; none of them is closed."""
        self._open.clear()

    def restore(self) -> None:
        """Everything comes through again, what was sent meanwhile included."""
        self._open.set()

    async def cut(self) -> None:
        """Close every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._meet, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, as a host without a PostgreSQL does."""
        if self._server is not None:
            self._server.close()
        await self.cut()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._open.wait()
        await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect to the server behind the proxy, and pass on bytes in both directions."""
        try:
            if folder := self._behind.query.get("host"):
                path = f"{folder}/.s.PGSQL.{self._behind.query.get('port', 5432)}"
                there = await asyncio.open_unix_connection(path)
            else:
                there = await asyncio.open_connection(self._behind.host, self._behind.port or 5432)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(there[1])
        for source, target in ((reader, there[1]), (there[0], writer)):
            pump = asyncio.create_task(self._pump(source, target))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(2**16):
                await self._open.wait()
                target.write(data)
                await target.drain()
        await self._open.wait()
        target.transport.abort()
        self._writers.discard(target)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.restore()
        await self.stop()


class Gateway(Proxy):
    """An HTTP proxy that can respond by itself, as a proxy does whose configuration is being changed.

    Args:
        url: The URL of the HTTP service behind it.
        port: The port to listen on.
    """

    def __init__(self, url: str, *, port: int = 0) -> None:
        super().__init__(url)
        self.port = port
        self._response: bytes | None = None

    @property
    def url(self) -> str:
        """The URL of the service through the gateway."""
        return f"http://127.0.0.1:{self.port}"

    async def respond_with(self, response: bytes) -> None:
        """Close all connections, and send this response to each request until `forward_again`."""
        self._response = response
        await self.cut()

    def forward_again(self) -> None:
        """Pass requests on to the service."""
        self._response = None

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._response is None:
            await super()._forward(reader, writer)
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self._response)
            await writer.drain()
        writer.close()
        self._writers.discard(writer)
