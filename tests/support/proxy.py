"""TCP proxies in front of the database and of the broker, which simulate failures of the network."""

import asyncio
import contextlib
from typing import Self

from sqlalchemy import make_url


class Proxy:
    """A proxy in front of PostgreSQL that can stop forwarding (`silence`) and close connections (`cut`).

    Args:
        url: The URL of the database, over a Unix socket or TCP.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        """The URL of the database through the proxy."""
        url = self._target.set(drivername="postgresql", host="127.0.0.1", port=self.port, query={})
        return url.render_as_string(hide_password=False)

    @property
    def is_connected(self) -> bool:
        """Has at least one open connection."""
        return bool(self._writers)

    def silence(self) -> None:
        """Forward nothing more over old and new connections, and keep them open."""
        self._open.clear()

    def restore(self) -> None:
        """Forward again, including the bytes that were sent meanwhile."""
        self._open.set()

    async def cut(self) -> None:
        """Close every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, like a host without PostgreSQL."""
        if self._server is not None:
            self._server.close()
        await self.cut()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._open.wait()
        await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect to the server behind the proxy, and forward bytes in both directions."""
        try:
            if folder := self._target.query.get("host"):
                path = f"{folder}/.s.PGSQL.{self._target.query.get('port', 5432)}"
                upstream = await asyncio.open_unix_connection(path)
            else:
                upstream = await asyncio.open_connection(self._target.host, self._target.port or 5432)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(upstream[1])
        for source, target in ((reader, upstream[1]), (upstream[0], writer)):
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
    """An HTTP proxy that can respond itself, like a proxy during a change of its configuration.

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
        """Forward requests to the service again."""
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
