"""The transport of the client against servers that send exactly the bytes of a test."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from broker.client.transport import Transport

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n"
MIB = 2**20
WITHIN = 20

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of one connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Read a request, and return its head. Raise EOFError if the client has closed the connection."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length: "):
                await self.reader.readexactly(int(line.partition(b": ")[2]))
        return head

    def respond(self, response: bytes = GOOD) -> None:
        self.writer.write(response)


class Server:
    """A server that runs a script for each connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.url = ""
        self.connections = 0
        self.left = asyncio.Semaphore(0)

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(Peer(self.connections, reader, writer))
        except (EOFError, ConnectionError):
            self.left.release()
        finally:
            writer.close()

    async def until_left(self) -> None:
        """Wait until a client has closed its connection."""
        await asyncio.wait_for(self.left.acquire(), WITHIN)


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Run a server with a script."""
    server = Server(script)
    listening = await asyncio.start_server(server.meet, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    server.url = f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(WITHIN), listening:
        yield server


@asynccontextmanager
async def transport_to(url: str) -> AsyncIterator[Transport]:
    transport = Transport(httpx.URL(url), ssl.create_default_context())
    try:
        yield transport
    finally:
        await transport.close()


async def get(transport: Transport, *, silent_seconds: float = WITHIN, is_repeatable: bool = True) -> bytes:
    """Send a request, and return the content of the response."""
    return (await transport.send(GET, b"", silent_seconds, is_repeatable=is_repeatable)).content


async def keep_responding(peer: Peer) -> None:
    while True:
        await peer.request()
        peer.respond()


def responding(response: bytes, *, closes: bool = False) -> Script:
    """Return a script that sends the same response to each request."""

    async def respond(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.respond(response)
            if closes:
                return

    return respond


# Connections


async def test_requests_one_after_another_share_a_connection() -> None:
    async with serving(keep_responding) as server, transport_to(server.url) as transport:
        for _ in range(5):
            assert await get(transport) == b"1"
        assert server.connections == 1


async def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    all_there = asyncio.Barrier(5)

    async def script(peer: Peer) -> None:
        await peer.request()
        await all_there.wait()
        peer.respond()

    async with serving(script) as server, transport_to(server.url) as transport:
        assert await asyncio.gather(*(get(transport) for _ in range(5))) == [b"1"] * 5
        assert server.connections == 5


async def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    async with serving(responding(GOOD, closes=True)) as server, transport_to(server.url) as transport:
        for _ in range(3):
            assert await get(transport, is_repeatable=False) == b"1"
            [connection] = transport._idle
            await connection.closed
        assert server.connections == 3


async def test_a_connection_that_was_closed_while_the_event_loop_was_blocked_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client learns of the end of the connection only when its event loop runs again."""
    monkeypatch.setattr("broker.client.transport._SURE_SECONDS", -1.0)
    async with serving(responding(GOOD, closes=True)) as server, transport_to(server.url) as transport:
        assert await get(transport) == b"1"
        # The server of this test shares the loop, so its end of the connection is closed now but not read.
        assert await get(transport, is_repeatable=False) == b"1"
        assert server.connections == 2


async def hang_up_on_the_second_request(peer: Peer) -> None:
    await peer.request()
    peer.respond()
    if peer.number == 1:
        await peer.request()
        return
    await keep_responding(peer)


async def test_a_repeatable_request_is_sent_again_if_an_idle_connection_ends_without_a_response() -> None:
    async with serving(hang_up_on_the_second_request) as server, transport_to(server.url) as transport:
        assert await get(transport) == b"1"
        assert await get(transport) == b"1"
        assert server.connections == 2


async def test_any_other_request_is_not_sent_again_if_the_connection_ends_without_a_response() -> None:
    async with serving(hang_up_on_the_second_request) as server, transport_to(server.url) as transport:
        assert await get(transport) == b"1"
        with pytest.raises(httpx.RemoteProtocolError, match="closed the connection before a response"):
            await get(transport, is_repeatable=False)
        assert server.connections == 1


async def test_a_new_connection_that_ends_without_a_response_is_an_error() -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.request()

    async with serving(hang_up) as server, transport_to(server.url) as transport:
        with pytest.raises(httpx.RemoteProtocolError, match="closed the connection before a response"):
            await get(transport)
        assert server.connections == 1


async def test_a_reset_connection_is_an_error() -> None:
    async def reset(peer: Peer) -> None:
        await peer.request()
        peer.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )

    async with serving(reset) as server, transport_to(server.url) as transport:
        with pytest.raises(httpx.ReadError, match="reset by peer"):
            await get(transport)


async def test_a_cancelled_request_closes_its_connection() -> None:
    received = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        received.set()
        await peer.request()

    async with serving(script) as server, transport_to(server.url) as transport:
        sending = asyncio.create_task(get(transport))
        await received.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await server.until_left()


async def test_idle_connections_are_closed_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.client.transport._KEEP_SECONDS", 0.0)
    async with serving(keep_responding) as server, transport_to(server.url) as transport:
        await get(transport)
        await server.until_left()


async def test_a_closed_transport_closes_its_idle_connections_and_accepts_no_requests() -> None:
    async with serving(keep_responding) as server, transport_to(server.url) as transport:
        await get(transport)
        await transport.close()
        await server.until_left()
        with pytest.raises(RuntimeError, match="closed"):
            await get(transport)


async def test_a_request_that_outlives_its_transport_gets_its_response() -> None:
    received, respond = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        received.set()
        await respond.wait()
        peer.respond()
        await peer.request()

    async with serving(script) as server, transport_to(server.url) as transport:
        sending = asyncio.create_task(get(transport))
        await received.wait()
        await transport.close()
        respond.set()
        assert await sending == b"1"
        await server.until_left()


async def test_the_second_address_of_a_name_is_tried_if_the_first_one_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()

    async def addresses(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "broker"
        return [
            info
            for address in ("::1", "127.0.0.1")
            for info in await getaddrinfo(address, port, type=socket.SOCK_STREAM)
        ]

    getaddrinfo = loop.getaddrinfo
    monkeypatch.setattr(loop, "getaddrinfo", addresses)
    async with (
        serving(keep_responding) as server,
        transport_to(server.url.replace("127.0.0.1", "broker")) as transport,
    ):
        assert await get(transport) == b"1"


async def test_an_address_that_nobody_listens_on_is_an_error() -> None:
    async with serving(keep_responding) as server:
        url = server.url
    async with transport_to(url) as transport:
        with pytest.raises(httpx.ConnectError, match="Connect call failed"):
            await get(transport)


async def test_a_name_that_cannot_be_resolved_is_an_error() -> None:
    for name in ("name.invalid", f"{'x' * 64}.invalid"):
        async with transport_to(f"http://{name}") as transport:
            with pytest.raises(httpx.ConnectError):
                await get(transport)


async def test_connecting_takes_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.sleep(WITHIN)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", hang)
    monkeypatch.setattr("broker.client.transport._CONNECT_SECONDS", 0.01)
    async with transport_to("http://127.0.0.1") as transport:
        with pytest.raises(httpx.ConnectTimeout):
            await get(transport)


# Responses


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n",
        INTERIM + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nabcde",
    ],
    ids=["chunked", "interim responses", "no reason"],
)
async def test_a_connection_is_used_again_after_a_complete_response(response: bytes) -> None:
    async with serving(responding(response)) as server, transport_to(server.url) as transport:
        for _ in range(2):
            reply = await transport.send(GET, b"", WITHIN, is_repeatable=True)
            assert (reply.status, reply.content) == (200, b"abcde")
            assert {name for name, _ in reply.headers} <= {b"Transfer-Encoding", b"Content-Length"}
        assert server.connections == 1


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcdeHTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcderubbish",
    ],
    ids=["Connection: close", "HTTP/1.0", "second response", "rubbish after it"],
)
async def test_a_connection_is_not_used_again_if_the_server_will_close_it(response: bytes) -> None:
    async with serving(responding(response)) as server, transport_to(server.url) as transport:
        for _ in range(2):
            assert await get(transport) == b"abcde"
            await server.until_left()
        assert server.connections == 2


async def test_a_connection_on_which_the_server_sends_something_unasked_is_closed() -> None:
    async with serving(keep_responding) as server, transport_to(server.url) as transport:
        await get(transport)
        [connection] = transport._idle
        connection.data_received(GOOD)
        await server.until_left()
        assert await get(transport) == b"1"


async def test_a_response_without_a_length_ends_with_the_connection() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nabcde"
    async with serving(responding(response, closes=True)) as server, transport_to(server.url) as transport:
        assert await get(transport) == b"abcde"


@pytest.mark.parametrize("status", [204, 304])
async def test_a_response_that_cannot_have_content_is_complete_after_its_headers(status: int) -> None:
    script = responding(f"HTTP/1.1 {status} X\r\nETag: x\r\n\r\n".encode())
    async with serving(script) as server, transport_to(server.url) as transport:
        for _ in range(2):
            assert await get(transport) == b""
        assert server.connections == 1


async def test_a_response_in_single_bytes_is_read() -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        for byte in b"HTTP/1.1 200 Fine\r\nContent-Type: text/x\r\nContent-Length: 3\r\n\r\nabc":
            peer.respond(bytes([byte]))
            await peer.writer.drain()
            await asyncio.sleep(0)

    async with serving(drip) as server, transport_to(server.url) as transport:
        reply = await transport.send(GET, b"", WITHIN, is_repeatable=True)
    assert reply.reason == b"Fine"
    assert reply.headers == [(b"Content-Type", b"text/x"), (b"Content-Length", b"3")]
    assert reply.content == b"abc"


async def test_large_bodies_are_sent_and_received() -> None:
    content = bytes(range(256)) * (20 * MIB // 256)

    async def echo(peer: Peer) -> None:
        head = await peer.reader.readuntil(b"\r\n\r\n")
        body = await peer.reader.readexactly(int(head.split(b"Content-Length: ")[1]))
        peer.respond(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await peer.request()

    async with serving(echo) as server, transport_to(server.url) as transport:
        head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(content)
        reply = await transport.send(head, content, WITHIN, is_repeatable=True)
        assert reply.content == content
        assert len(transport._idle) == 1


async def test_a_response_before_the_end_of_the_request_is_read_and_closes_the_connection() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.respond(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await refused.wait()

    refused, content = asyncio.Event(), bytes(64 * MIB)
    async with serving(refuse) as server, transport_to(server.url) as transport:
        head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(content)
        assert (await transport.send(head, content, WITHIN, is_repeatable=True)).status == 413
        assert transport._idle == []
        refused.set()


@pytest.mark.parametrize(
    "response",
    [
        b"\x16\x03\x01\x00\x05rubbish",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: x\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 300_000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20_000,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Le",
    ],
    ids=["binary", "ssh", "two lengths", "negative length", "no header", "no chunk", "many headers",
         "long header", "endless interim responses", "upgrade", "short", "short chunks", "no chunks",
         "short head"],
)  # fmt: skip
async def test_a_response_that_is_not_http_or_not_complete_is_an_error(response: bytes) -> None:
    async with serving(responding(response, closes=True)) as server, transport_to(server.url) as transport:
        with pytest.raises(httpx.RemoteProtocolError):
            await get(transport)
        # Something was received, so the request is not sent again.
        assert server.connections == 1
        assert transport._idle == []


# Timeouts


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na"]
)
async def test_a_response_that_is_never_finished_times_out(start: bytes) -> None:
    async with serving(responding(start)) as server, transport_to(server.url) as transport:
        with pytest.raises(httpx.ReadTimeout):
            await get(transport, silent_seconds=0.05)
        await server.until_left()


async def test_a_request_that_is_never_read_times_out() -> None:
    async def ignore(peer: Peer) -> None:
        peer.writer.transport.pause_reading()
        await timed_out.wait()

    timed_out, content = asyncio.Event(), bytes(64 * MIB)
    async with serving(ignore) as server, transport_to(server.url) as transport:
        head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(content)
        with pytest.raises(httpx.ReadTimeout):
            await transport.send(head, content, 0.3, is_repeatable=True)
        timed_out.set()


async def test_a_response_that_makes_progress_does_not_time_out() -> None:
    """The test moves the clock of the connection instead of waiting."""
    next_byte = asyncio.Semaphore(0)

    async def drip(peer: Peer) -> None:
        await peer.request()
        for byte in GOOD:
            await next_byte.acquire()
            peer.respond(bytes([byte]))

    async with serving(drip) as server, transport_to(server.url) as transport:
        connection = await transport._connect()
        sending = asyncio.create_task(connection.send(GET, b"", WITHIN))
        for _ in GOOD:
            await asyncio.sleep(0)
            silent_since = connection._active_at = connection._active_at - WITHIN
            next_byte.release()
            while connection._active_at == silent_since:
                await asyncio.sleep(0)
            connection._check_progress()
        assert (await sending).content == b"1"


async def test_a_request_that_makes_progress_does_not_time_out() -> None:
    content = bytes(64 * MIB)
    async with serving(keep_responding) as server, transport_to(server.url) as transport:
        connection = await transport._connect()
        head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(content)
        sending = asyncio.create_task(connection.send(head, content, WITHIN))
        await asyncio.sleep(0)
        while unsent := connection._transport.get_write_buffer_size():
            connection._active_at -= WITHIN
            while connection._transport.get_write_buffer_size() == unsent:
                await asyncio.sleep(0)
            connection._check_progress()
        assert (await sending).content == b"1"
