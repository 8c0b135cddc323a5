"""Read a PostgreSQL connection URL as libpq does, and refuse parts that the driver would misread."""

import configparser
import getpass
import os
import re
import ssl
from typing import NamedTuple
from urllib.parse import quote, unquote, urlencode

from broker.postgres.connection_parameters import (
    LAST_PORT,
    TLS_PARAMETERS,
    ConnectionUrlError,
    check,
    port_problem,
    shown,
)

_URL = re.compile(
    r"(?P<scheme>postgres(ql)?(\+asyncpg)?)://"
    r"((?P<login>[^/?]*)@)?(?P<hosts>[^/?]*)(/(?P<dbname>[^?]*))?(\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST = re.compile(r"(?P<host>\[[^]]+\]|[^:\[\]]*)(:(?P<port>[0-9]*))?")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00|\0")
_NO_URL = "must look like postgresql://user:password@host/name"

#: Values of `sslmode` that forbid a connection without TLS.
TLS_IS_REQUIRED = ("require", "verify-ca", "verify-full")


class Host(NamedTuple):
    """A host of a connection URL: a name, an address or a socket's folder; None for the default."""

    name: str | None
    port: int | None


class ConnectionUrl:
    """A valid connection URL: its parameters by libpq's names."""

    def __init__(self, parameters: dict[str, str]) -> None:
        self._parameters = parameters
        self.hosts = _hosts(parameters)

    @classmethod
    def parse(cls, url: str) -> "ConnectionUrl":
        """Parse a URL, and read the service that it names.

        Args:
            url: `postgresql://user:password@host:port/name?parameter=value`. Commas separate several hosts.
                Every part may be missing.

        Raises:
            ConnectionUrlError: The broker cannot use the URL.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise ConnectionUrlError(_NO_URL)
        parameters = _authority(match) | _query(match["query"] or "")
        for name, value in parameters.items():
            check(name, value)
        if service := parameters.pop("service", ""):
            parameters = _service(service, parameters.pop("servicefile", None)) | parameters
        if parameters.get("sslrootcert") == "system":
            parameters.setdefault("sslmode", "verify-full")
            if parameters["sslmode"] != "verify-full":
                raise ConnectionUrlError("cannot be used: sslrootcert=system needs sslmode=verify-full")
            parameters["sslrootcert"] = str(ssl.get_default_verify_paths().cafile)
        if parameters.get("sslnegotiation") == "direct" and parameters.get("sslmode") not in TLS_IS_REQUIRED:
            raise ConnectionUrlError(
                f"cannot be used: sslnegotiation=direct needs sslmode={' or '.join(TLS_IS_REQUIRED)}"
            )
        _check_root_certificate(parameters)
        return cls(parameters)

    def __getitem__(self, name: str) -> str | None:
        """Return the value of a parameter, or None if it is missing or empty."""
        return self._parameters.get(name) or None

    def user(self) -> str:
        """Return the user to connect as: by default PGUSER, or the user that runs this process.

        Raises:
            ConnectionUrlError: The URL names no user, and this process has no user name.
        """
        try:
            return self["user"] or os.environ.get("PGUSER") or getpass.getuser()
        except (KeyError, OSError):
            raise ConnectionUrlError(
                f"names no user, and user id {os.geteuid()} has no name on this machine."
                " Write postgresql://user@host/name"
            ) from None

    @property
    def password(self) -> str | None:
        """Return the password: None if a password file may have it, empty if the server needs none."""
        return self._parameters.get("password")

    def number(self, name: str, default: int) -> int:
        """Return the value of an integer parameter."""
        return int(self[name] or default)

    def tls(self) -> str | None:
        """Return a URL with only the parameters for TLS, or None if there are none."""
        names = (*TLS_PARAMETERS, "sslpassword")
        parameters = {name: value for name in names if (value := self[name]) is not None}
        return f"postgresql://?{urlencode(parameters, quote_via=quote)}" if parameters else None


def without_password(url: str) -> str:
    """Return a valid URL for PostgreSQL's own programs, whose arguments everybody on the machine can read."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ConnectionUrlError(_NO_URL)
    login = "" if match["login"] is None else f"{match['login'].partition(':')[0]}@"
    database = "" if match["dbname"] is None else f"/{match['dbname']}"
    query = _query(match["query"] or "")
    query.pop("password", None)
    rest = f"?{urlencode(query, quote_via=quote)}" if query else ""
    return f"postgresql://{login}{match['hosts']}{database}{rest}"


def _check_root_certificate(parameters: dict[str, str]) -> None:
    named = parameters.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    usual = os.path.expanduser("~/.postgresql/root.crt")  # noqa: PTH111 - a user may have no home folder
    if parameters.get("sslmode", "").startswith("verify-") and not (named or os.path.exists(usual)):  # noqa: PTH110
        raise ConnectionUrlError(
            f"cannot be used: sslmode={parameters['sslmode']} needs sslrootcert=FILE or sslrootcert=system"
        )


def _authority(match: re.Match[str]) -> dict[str, str]:
    """Return the user, password, hosts and database of a URL."""
    user, has_password, password = (match["login"] or "").partition(":")
    hosts = [_HOST.fullmatch(host) for host in match["hosts"].split(",")]
    if not all(hosts):
        raise ConnectionUrlError(
            f"{_NO_URL}, but its host or port is malformed (in a password, write"
            " / as %2F, ? as %3F and @ as %40; write an IPv6 address in brackets)"
        )
    valid = [host for host in hosts if host is not None]
    ports = [host["port"] or "" for host in valid]
    if any(port and port_problem(port) for port in ports):
        raise ConnectionUrlError(f"{_NO_URL}, and a port must be a number from 1 to {LAST_PORT}")
    parameters = {
        "user": user,
        "password": password,
        "host": ",".join(host["host"].strip("[]") for host in valid),
        "dbname": match["dbname"] or "",
    }
    parameters = {name: _decode(name, value) for name, value in parameters.items() if value.strip(",")}
    if has_password and not password:
        parameters["password"] = ""
    return parameters | ({"port": ",".join(ports)} if any(ports) else {})


def _query(query: str) -> dict[str, str]:
    parameters = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        name = _decode("the name of a parameter", name)
        if not equals:
            raise ConnectionUrlError(f"cannot be used: {shown(name)} needs a value: {shown(name)}=…")
        parameters[name] = _decode(shown(name), value)
    return parameters


def _decode(name: str, value: str) -> str:
    if _BROKEN_ESCAPE.search(value):
        raise ConnectionUrlError(f"cannot be used: {name} is not percent-encoded correctly; write % as %25")
    try:
        decoded = unquote(value, errors="strict")
        decoded.encode()
    except UnicodeError:
        raise ConnectionUrlError(f"cannot be used: {name} is not UTF-8") from None
    return decoded


def _hosts(parameters: dict[str, str]) -> list[Host]:
    """Pair hosts with ports as libpq does: a port for each host, or one port for all."""
    names = (parameters.get("host") or "").split(",")
    ports = (parameters.get("port") or "").split(",")
    if any(port and port_problem(port) for port in ports):
        raise ConnectionUrlError(f"cannot be used: port must be a number from 1 to {LAST_PORT}")
    if len(names) > 1 and not all(names):
        raise ConnectionUrlError("cannot be used: a host is missing between two commas")
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise ConnectionUrlError(f"cannot be used: port has {len(ports)} values for {len(names)} hosts")
    return [Host(name or None, int(port) if port else None) for name, port in zip(names, ports, strict=True)]


def _service(service: str, file: str | None) -> dict[str, str]:
    """Return the parameters of a service from the service file of libpq."""
    path = file or os.environ.get("PGSERVICEFILE") or os.path.join("~", ".pg_service.conf")  # noqa: PTH118
    services = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        services.read(os.path.expanduser(path), "utf-8")  # noqa: PTH111 - unchanged without a home folder
    except (configparser.Error, UnicodeError, OSError):
        raise ConnectionUrlError("cannot be used: the service file cannot be read or is malformed") from None
    if service not in services:
        raise ConnectionUrlError(
            "cannot be used: service names no service of the service file; see PGSERVICEFILE"
        )
    parameters = dict(services[service])
    for name, value in parameters.items():
        check(name, value, "the service's ")
    return parameters
