"""Routes of requests: the transport of the client, or httpx. Both send the same."""

import asyncio
import gzip
import json
import ssl
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.client import Connection, SettingError
from tests.client.test_connection import route
from tests.client.test_transport import GOOD, Peer, responding, serving
from tests.support.engines import requires_program

__all__ = ["route"]

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.upper, PROXIES), "SSL_CERT_FILE", "BROKER_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "environment", "is_direct"),
    [
        ("http://broker:8000", {}, True),
        ("https://broker/base", {}, True),
        ("http://[::1]:8000", {}, True),
        ("http://user:secret@broker", {}, False),
        ("http://broker", {"HTTP_PROXY": "http://proxy"}, False),
        ("http://broker", {"HTTPS_PROXY": "http://proxy"}, True),
        ("https://broker", {"HTTPS_PROXY": "http://proxy"}, False),
        ("https://broker", {"ALL_PROXY": "http://proxy"}, False),
        ("http://broker.lab", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "a,lab"}, True),
        ("http://broker.lab", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "*"}, True),
        ("http://broker.lab", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "other"}, False),
        ("http://127.0.0.1:8000", {"HTTP_PROXY": "http://proxy"}, True),
        ("http://localhost:8000", {"ALL_PROXY": "http://proxy"}, True),
    ],
)
async def test_a_proxy_or_a_password_in_the_url_needs_httpx(
    url: str, environment: dict[str, str], is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name.lower(), value)
    async with Connection(url) as connection:
        assert (connection._transport is not None) is is_direct


async def test_requests_go_over_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    async def proxy(peer: Peer) -> None:
        heads.append(await peer.request())
        peer.respond()

    async with serving(proxy) as server:
        monkeypatch.setenv("http_proxy", server.url)
        async with Connection("http://broker.invalid") as connection:
            assert await connection.call("GET", "/v1/tasks/a", int) == 1
    assert heads[0].startswith(b"GET http://broker.invalid/v1/tasks/a HTTP/1.1\r\n")


Call = dict[str, Any]


@pytest.mark.parametrize(
    "call",
    [
        {"method": "GET", "path": "/v1/tasks/a~b:1%20"},
        {"method": "GET", "path": "/v1/tasks", "query": {"limit": 5, "x": None, "y": "ä b&", "z": True}},
        {"method": "GET", "path": "/v1/work", "is_minimal": True},
        {"method": "DELETE", "path": "/v1/tasks/a", "trace": {"traceparent": "00-1", "tracestate": "a=b"}},
        {"method": "POST", "path": "/v1/tools/t/heartbeat"},
        {"method": "POST", "path": "/v1/tasks", "json": {"id": "ä"}},
        {"method": "PUT", "path": "/v1/x", "json": []},
        {"method": "PATCH", "path": "/v1/x", "json": None},
        # Only httpx knows how to send these.
        {"method": "GET", "path": "/v1/tasks/ä b"},
        {"method": "GET", "path": "/v1/../x"},
        {"method": "HEAD", "path": "/v1/tasks/a"},
    ],
    ids=lambda call: f"{call['method']} {call['path']}",
)
async def test_the_server_gets_the_same_request_over_both_routes(call: Call) -> None:
    received: list[tuple[bytes, list[bytes]]] = []

    async def note(peer: Peer) -> None:
        first, *headers = (await peer.request()).split(b"\r\n")
        received.append((first, sorted(headers)))
        peer.respond(
            GOOD if call["method"] != "HEAD" else b"HTTP/1.1 202 Accepted\r\nConnection: close\r\n\r\n"
        )

    async with serving(note) as server:
        for is_direct in (True, False):
            async with Connection(f"{server.url}/base", key="key") as connection:
                if not is_direct:
                    connection._transport = None
                await connection.call(type_=Any, **call)
    assert received[0] == received[1]
    assert b"Authorization: Bearer key" in received[0][1]


@pytest.mark.usefixtures("route")
async def test_a_header_that_http_does_not_allow_is_not_sent() -> None:
    received: list[bytes] = []

    async def note(peer: Peer) -> None:
        received.append(await peer.request())

    async with serving(note) as server, Connection(server.url, patience_seconds=0) as connection:
        for value in ("a\r\nX-Other: 1", "a\n", "\x00"):
            with pytest.raises(httpx.LocalProtocolError):
                await connection.call("GET", "/", int, trace={"tracestate": value})
    assert received == []


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_response_is_decoded(coding: str, compress: Callable[[bytes], bytes]) -> None:
    value = {"items": list(range(1000))}
    content = compress(json.dumps(value).encode())
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(content)}\r\n\r\n"
    async with serving(responding(head.encode() + content)) as server, Connection(server.url) as connection:
        assert await connection.call("GET", "/v1/tasks", dict) == value


@pytest.mark.usefixtures("route")
async def test_the_headers_of_a_response_can_be_read_in_any_case() -> None:
    response = b"HTTP/1.1 200 OK\r\nTraceparent: 00-1\r\nContent-Length: 1\r\n\r\n1"
    seen: list[str] = []
    async with serving(responding(response)) as server, Connection(server.url) as connection:
        await connection.call("GET", "/", int, on_headers=lambda headers: seen.append(headers["TraceParent"]))
    assert seen == ["00-1"]


@pytest.mark.usefixtures("route")
async def test_an_error_has_the_request_that_failed() -> None:
    async with (
        serving(responding(b"rubbish\r\n", closes=True)) as server,
        Connection(server.url, patience_seconds=0) as connection,
    ):
        with pytest.raises(httpx.RemoteProtocolError) as error:
            await connection.call("GET", "/v1/tasks/a", int)
    assert str(error.value.request.url) == f"{server.url}/v1/tasks/a"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return the path of a certificate for 127.0.0.1 with its key."""
    path = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    subprocess.run([*command, "-keyout", path, "-out", tmp_path / "public"], check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "public").read_text())
    return path


@requires_program("openssl")
@pytest.mark.usefixtures("route")
async def test_tls_uses_the_certificates_of_the_environment(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client ignores the environment for the addresses of this machine, where no proxy can reach it.
    monkeypatch.setattr("broker.client.http_client._is_local", lambda url: False)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with serving(responding(GOOD), tls) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with Connection(server.url, patience_seconds=0) as connection:
            for _ in range(3):
                assert await connection.call("GET", "/", int) == 1
        assert server.connections == 1
        monkeypatch.delenv("SSL_CERT_FILE")
        async with Connection(server.url, patience_seconds=0) as connection:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await connection.call("GET", "/", int)


async def test_certificates_that_do_not_exist_are_an_invalid_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(SettingError, match=r"cannot connect to 'https://broker'"):
        Connection("https://broker")


@pytest.mark.usefixtures("route")
async def test_a_cancelled_call_closes_its_connection() -> None:
    received = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        received.set()
        await peer.request()

    async with serving(script) as server, Connection(server.url) as connection:
        call = asyncio.create_task(connection.call("GET", "/v1/tasks/a", int, wait=60))
        await received.wait()
        call.cancel()
        await server.until_left()
        with pytest.raises(asyncio.CancelledError):
            await call
