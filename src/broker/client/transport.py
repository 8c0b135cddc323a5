"""Send requests straight to the server of a URL, over connections that stay open between requests."""

import asyncio
import ipaddress
import ssl

import httpx

from broker.client.server_connection import Reply, ServerConnection

_CONNECT_SECONDS = 5.0
# If a name has several addresses, the client tries the next one after this time, too.
_NEXT_ADDRESS_SECONDS = 0.25
# Servers and proxies keep idle connections longer than this.
_KEEP_SECONDS = 5.0
# The event loop may not know yet that the server has closed a connection that was idle for longer.
_SURE_SECONDS = 1.0


class Transport:
    """A pool of connections to one server.

    A request of the client over httpx costs many times the CPU time of a request over this transport. It
    supports what most requests need: HTTP/1.1, with TLS or without, and no proxy. It does not interpret the
    responses: it follows no redirects and decodes no content. Use it in one event loop.

    Args:
        url: The URL of the server. The transport uses only its scheme, host and port.
        tls: The settings of TLS, for `https`.
    """

    def __init__(self, url: httpx.URL, tls: ssl.SSLContext) -> None:
        is_secure = url.scheme == "https"
        self._host = url.raw_host.decode("ascii")
        # Only a name has several addresses. If a request is cancelled while asyncio tries several at once,
        # a socket may stay open until Python frees it.
        self._next_address_seconds = None if _is_address(self._host) else _NEXT_ADDRESS_SECONDS
        self._port = url.port or (443 if is_secure else 80)
        self._tls = tls if is_secure else None
        # TLS has its own handshake after that of TCP.
        self._connect_seconds = _CONNECT_SECONDS * (2 if is_secure else 1)
        self._idle: list[ServerConnection] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def send(self, head: bytes, content: bytes, silent_seconds: float, *, is_repeatable: bool) -> Reply:
        """Send a request and return the response. If it is cancelled, it closes the connection.

        The server may close an idle connection at the moment when a request is sent on it. If the request is
        repeatable, the transport then sends it again on another connection.

        Args:
            head: The first line and the headers of the request, with the empty line at their end.
            content: The body of the request.
            silent_seconds: How long, in seconds, the server may neither accept nor send anything.
            is_repeatable: Whether the server may get the request twice.

        Raises:
            httpx.TransportError: The server cannot be reached, did not respond, or does not speak HTTP/1.1.
            RuntimeError: The transport is closed.
        """
        while True:
            connection = await self._idle_connection()
            is_new = connection is None
            connection = connection or await self._connect()
            try:
                reply = await connection.send(head, content, silent_seconds)
            except (httpx.ReadError, httpx.RemoteProtocolError):
                if is_new or connection.has_received or not is_repeatable:
                    raise
                continue
            self._keep(connection)
            return reply

    async def close(self) -> None:
        """Close the idle connections now, and the others after their requests."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        await asyncio.gather(*(connection.closed for connection in idle))

    async def _idle_connection(self) -> ServerConnection | None:
        """Remove and return an idle connection, the latest one first, or return None if there is none."""
        if self._is_closed:
            raise RuntimeError("the connection to the broker is closed")
        if self._idle and self._idle[-1].idle_seconds > _SURE_SECONDS:
            # The loop resumes this coroutine before it reads from the sockets, so one pass is not enough.
            for _ in range(2):
                await asyncio.sleep(0)
        while self._idle:
            if not (connection := self._idle.pop()).is_closing:
                return connection
        return None

    async def _connect(self) -> ServerConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(
                    ServerConnection,
                    self._host,
                    self._port,
                    ssl=self._tls,
                    happy_eyeballs_delay=self._next_address_seconds,
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {self._connect_seconds:g} s") from None
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(str(error) or repr(error)) from error
        return connection

    def _keep(self, connection: ServerConnection) -> None:
        """Keep a connection for the next requests."""
        if self._is_closed:
            connection.close()
        if connection.is_closing:
            return
        self._idle.append(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_KEEP_SECONDS, self._close_unused)

    def _close_unused(self) -> None:
        """Close the connections that were idle for too long."""
        self._timer = None
        idle, self._idle = self._idle, []
        for connection in idle:
            if connection.idle_seconds >= _KEEP_SECONDS:
                connection.close()
            else:
                self._keep(connection)


def _is_address(host: str) -> bool:
    """Return whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
