"""The address of the database: one host, or several, of which one accepts writes."""

import random
import re
import socket
from itertools import product
from typing import Any

import asyncpg

from broker.postgres.connection_url import ConnectionUrl

_SCHEME = re.compile(r"^postgres(ql)?(\+asyncpg)?://")

CONNECT_SECONDS = 5.0
# The kernel notices within about ten seconds that the other side is gone.
_KEEP_ALIVE = {
    "TCP_KEEPIDLE": ("keepalives_idle", 5),
    "TCP_KEEPINTVL": ("keepalives_interval", 2),
    "TCP_KEEPCNT": ("keepalives_count", 3),
    "TCP_USER_TIMEOUT": ("tcp_user_timeout", 10_000),
}


class Address:
    """The address of the database.

    Args:
        url: `postgresql://user:password@host/name`, with several hosts `host-a:5432,host-b:5432`.
        connect_seconds: The time limit for a connection to one host: enough for a busy host, and short enough
            to try the next one soon. A `connect_timeout` in the URL replaces it.
        accepts_writes: Whether to connect only to a host that accepts writes. A pooler cannot report that.

    Raises:
        ConnectionUrlError: The URL cannot be used.
    """

    def __init__(
        self, url: str, *, connect_seconds: float = CONNECT_SECONDS, accepts_writes: bool = True
    ) -> None:
        self._url = parsed = ConnectionUrl.parse(url)
        self._connect_seconds = float(parsed["connect_timeout"] or connect_seconds)
        self._hosts = list(parsed.hosts)
        if parsed["load_balance_hosts"] == "random":
            random.shuffle(self._hosts)
        # Usually only one of several hosts accepts writes.
        wanted = parsed["target_session_attrs"] or ("read-write" if accepts_writes else "any")
        # asyncpg would choose among all hosts at once. Here it gets one host at a time.
        self._wanted = ("standby", "any") if wanted == "prefer-standby" else (wanted,)
        self._options = _options(parsed)

    async def connect(self, **options: Any) -> "asyncpg.Connection[Any]":
        """Return a new connection to a host that accepts writes. Try the host of the last connection first.

        In asyncpg, all hosts would share one time limit, and one unreachable host would use it up.

        Raises:
            OSError: No host responds. The last host may also raise an error of asyncpg.
        """
        failed: Exception | None = None
        settings = (options.pop("server_settings", None) or {}) | self._server_settings()
        for wanted, host in product(self._wanted, list(self._hosts)):
            try:
                connection = await asyncpg.connect(
                    host=host.name,
                    port=host.port,
                    timeout=self._connect_seconds,
                    target_session_attrs=wanted,
                    server_settings=settings,
                    **self._options,
                    **options,
                )
            except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
                failed = error
                continue
            except ValueError as error:
                # asyncpg cannot read ~/.pgpass, or a certificate in ~/.postgresql.
                reason = str(error).partition("\n")[0]
                raise OSError(f"the connection cannot be prepared: {reason}") from error
            self._hosts.remove(host)
            self._hosts.insert(0, host)
            self._keep_alive(connection)
            return connection
        assert failed is not None  # noqa: S101 - there is at least one host
        raise failed

    def _server_settings(self) -> dict[str, str]:
        """Return the session settings of the URL, which replace the broker's."""
        name = self._url["application_name"] or self._url["fallback_application_name"]
        settings = {"application_name": name, "options": self._url["options"]}
        return {setting: value for setting, value in settings.items() if value is not None}

    def _keep_alive(self, connection: "asyncpg.Connection[Any]") -> None:
        """Turn on the TCP keepalive probes of a connection."""
        sock = connection._transport.get_extra_info("socket")
        if sock is None or sock.family == socket.AF_UNIX or self._url["keepalives"] == "0":
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, (parameter, default) in _KEEP_ALIVE.items():
            value = self._url.number(parameter, default)
            if value and hasattr(socket, option):  # Linux has all options; 0 keeps the system default
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _options(url: ConnectionUrl) -> dict[str, Any]:
    """Return options for asyncpg, which would otherwise read them from PG* variables."""
    options: dict[str, Any] = {
        "dsn": url.tls(),
        "user": url.user(),
        "password": url.password,
        "passfile": url["passfile"],
        "database": url["dbname"],
        "krbsrvname": url["krbsrvname"],
        "gsslib": url["gsslib"] or "gssapi",
    }
    if url["sslmode"] == "disable":
        options["direct_tls"] = False
    return options


def libpq_url(url: str) -> str:
    """Return the URL as libpq and asyncpg accept it."""
    return _SCHEME.sub("postgresql://", url)
