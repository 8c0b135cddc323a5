"""Create the HTTP clients and the transport for the URL of a broker."""

import ssl
from typing import TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx

from broker.client.addresses import parsed
from broker.client.errors import SettingError
from broker.client.transport import Transport

HTTPClient = TypeVar("HTTPClient", httpx.Client, httpx.AsyncClient)

_CONNECT_SECONDS = 5.0
#: The client waits for a response this much longer than the broker may hold the request.
MARGIN_SECONDS = 30.0


def http_client(url: str, type_: type[HTTPClient], tls: ssl.SSLContext | None = None) -> HTTPClient:
    """Return an HTTP client for the broker at a URL.

    Args:
        url: The URL of the broker.
        type_: The class of the client, synchronous or asynchronous.
        tls: The settings of TLS. Default: those of the environment.

    Raises:
        SettingError: The URL, or an environment variable for proxies or certificates, is not valid.
    """
    try:
        return type_(
            base_url=url,
            timeout=silence(MARGIN_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            verify=tls or True,
            trust_env=not _is_local(parsed(url)),
        )
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        raise SettingError(f"The client cannot connect to {url!r}: {error}") from error


def clients(url: str) -> tuple[httpx.AsyncClient, Transport | None]:
    """Return an HTTP client and a transport for the broker at a URL.

    Returns:
        The client, and the transport for the requests that do not need the client. It is None if all of them
        do, because the environment names a proxy for this URL, or the URL contains a password.

    Raises:
        SettingError: See `http_client`.
    """
    try:
        parts = parsed(url)
        tls = httpx.create_ssl_context(trust_env=not _is_local(parts))
    except (httpx.InvalidURL, ValueError, OSError) as error:
        raise SettingError(f"The client cannot connect to {url!r}: {error}") from error
    http = http_client(url, httpx.AsyncClient, tls)
    needs_client = parts.userinfo or not parts.host or _has_proxy(parts)
    return http, None if needs_client else Transport(parts, tls)


def silence(seconds: float) -> httpx.Timeout:
    """Return the timeout of a request during which the server may be silent for some seconds."""
    return httpx.Timeout(seconds, connect=_CONNECT_SECONDS)


def _is_local(url: httpx.URL) -> bool:
    """Return whether a URL is on this machine, where a proxy cannot reach it."""
    return url.host in ("localhost", "127.0.0.1", "::1")


def _has_proxy(url: httpx.URL) -> bool:
    """Return whether the environment, or the settings of Windows or macOS, name a proxy for a URL."""
    proxies = {} if _is_local(url) else getproxies()
    return bool(proxies.get(url.scheme) or proxies.get("all")) and not proxy_bypass(url.host)
