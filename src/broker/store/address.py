"""Where the database is: one host, or several, of which the one that takes writes is meant."""

import re
import socket
from typing import Any
from urllib.parse import urlsplit

import asyncpg

_SCHEME = re.compile(r"^postgres(ql)?(\+asyncpg)?://")

CONNECT_SECONDS = 5.0
# The kernel finds out within some ten seconds that the other side is gone.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


class Address:
    """Where the database is.

    Args:
        url: `postgresql://user:password@host/name`, with several hosts `host-a:5432,host-b:5432`.
        connect_seconds: How long each of them is given: enough for one that is busy, and not too long before
            the next one is asked.
        takes_writes: Whether only a host that takes writes will do. A pooler cannot be asked.
    """

    def __init__(
        self, url: str, *, connect_seconds: float = CONNECT_SECONDS, takes_writes: bool = True
    ) -> None:
        self._connect_seconds = connect_seconds
        self._hosts = _each_host(libpq_url(url))
        # Of several hosts only one takes writes, as a rule.
        is_said = "target_session_attrs" in url or not takes_writes
        self._options = {} if is_said else {"target_session_attrs": "read-write"}

    async def connect(self, **options: Any) -> "asyncpg.Connection[Any]":
        """A new connection to a host that takes writes; the one that last did is asked first.

        asyncpg would have all hosts share one time limit, and the first one that is gone for good use it up.

        Args:
            options: What asyncpg takes.

        Raises:
            OSError: No host answers; also asyncpg's errors, of the host that was asked last.
        """
        failed: Exception | None = None
        for host in list(self._hosts):
            try:
                connection = await asyncpg.connect(
                    host, timeout=self._connect_seconds, **self._options, **options
                )
            except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
                failed = error
                continue
            self._hosts.remove(host)
            self._hosts.insert(0, host)
            _keep_alive(connection)
            return connection
        assert failed is not None  # noqa: S101 - there is at least one host
        raise failed


def libpq_url(url: str) -> str:
    """The URL as PostgreSQL's own libraries and asyncpg read it."""
    return _SCHEME.sub("postgresql://", url)


def _each_host(url: str) -> list[str]:
    """For each host a URL of its own."""
    parts = urlsplit(url)
    who, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [url]
    return [parts._replace(netloc=f"{who}{at}{host}").geturl() for host in hosts.split(",")]


def _keep_alive(connection: "asyncpg.Connection[Any]") -> None:
    """Have the kernel watch over a connection that says nothing for long."""
    sock = connection._transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE.items():
        if hasattr(socket, option):  # Linux has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
