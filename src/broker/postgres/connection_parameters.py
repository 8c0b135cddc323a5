"""Check the names and values of connection parameters of libpq."""

import re
import ssl
from collections.abc import Callable, Mapping

LAST_PORT = 65_535
_LONGEST_SECONDS = 86_400

# A check returns the problem of a value, or None. It never repeats the value, which may contain a password.
_Check = Callable[[str], str | None]


class ConnectionUrlError(ValueError):
    """A connection URL that the broker cannot use.

    The message follows the name of a setting: "cannot be used: sslmode must be one of …". It names the
    parameter, and never a value.
    """


def _text(_: str) -> str | None:
    return None


def _one_of(*values: str) -> _Check:
    def check(value: str) -> str | None:
        return None if value in values else f"must be one of {', '.join(values)}"

    return check


def _only(value_pattern: str, reason: str) -> _Check:
    def check(value: str) -> str | None:
        return None if re.fullmatch(value_pattern, value, re.IGNORECASE) else reason

    return check


def _integer(lowest: int, highest: int) -> _Check:
    def check(value: str) -> str | None:
        valid = re.fullmatch(r"[0-9]{1,9}", value) and lowest <= int(value) <= highest
        return None if valid else f"must be a whole number from {lowest} to {highest}"

    return check


def port_problem(value: str) -> str | None:
    """Return the problem of one or several ports, separated by commas, or None if they are valid."""
    valid = all(re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) <= LAST_PORT for port in value.split(","))
    return None if valid else f"must be a number from 1 to {LAST_PORT}"


def _file(value: str) -> str | None:
    try:
        with open(value, "rb"):  # noqa: PTH123 - Path refuses some characters
            return None
    except (OSError, ValueError) as error:
        return f"names a file that cannot be read ({getattr(error, 'strerror', None) or error})"


def _root_certificate(value: str) -> str | None:
    if value != "system":
        return _file(value)
    return None if ssl.get_default_verify_paths().cafile else "is `system`, but this system has no such file"


def _unsupported(instead: str) -> _Check:
    return lambda _: f"is not supported; {instead}"


_OMIT = "leave it out"
_NO = r"0|false|off|no"
_TLS = _one_of("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")

#: Every parameter of libpq (PostgreSQL 18), with the check of its value.
KNOWN: dict[str, _Check] = {
    "host": _text,
    "hostaddr": _unsupported("write the address as the host"),
    "port": port_problem,
    "dbname": _text,
    "user": _text,
    "password": _text,
    "passfile": _text,
    "service": _text,
    "servicefile": _file,
    "require_auth": _unsupported("the server's pg_hba.conf chooses the method"),
    "channel_binding": _one_of("disable", "prefer"),
    "connect_timeout": _integer(1, _LONGEST_SECONDS),
    "client_encoding": _only(r"auto|utf-?8", "must be UTF8 or auto, because the broker always uses UTF-8"),
    "options": _text,
    "application_name": _text,
    "fallback_application_name": _text,
    "keepalives": _one_of("0", "1"),
    "keepalives_idle": _integer(0, _LONGEST_SECONDS),
    "keepalives_interval": _integer(0, _LONGEST_SECONDS),
    "keepalives_count": _integer(0, 1_000),
    "tcp_user_timeout": _integer(0, _LONGEST_SECONDS * 1_000),
    "replication": _only(_NO, f"is not supported; {_OMIT}"),
    "gssencmode": _one_of("disable", "prefer"),
    "sslmode": _one_of("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": _one_of("postgres", "direct"),
    "sslcompression": _one_of("0"),
    "sslcert": _file,
    "sslkey": _file,
    "sslkeylogfile": _unsupported(_OMIT),
    "sslpassword": _text,
    "sslcertmode": _one_of("allow"),
    "sslrootcert": _root_certificate,
    "sslcrl": _file,
    "sslcrldir": _unsupported("put the lists into one file, and name it in sslcrl"),
    "sslsni": _one_of("1"),
    "requirepeer": _unsupported(_OMIT),
    "ssl_min_protocol_version": _TLS,
    "ssl_max_protocol_version": _TLS,
    "min_protocol_version": _one_of("3.0"),
    "max_protocol_version": _one_of("3.0", "3.2", "latest"),
    "krbsrvname": _text,
    "gsslib": _one_of("gssapi", "sspi"),
    "gssdelegation": _one_of("0"),
    "scram_client_key": _unsupported("use a password"),
    "scram_server_key": _unsupported("use a password"),
    "oauth_issuer": _unsupported("use a password"),
    "oauth_client_id": _unsupported("use a password"),
    "oauth_client_secret": _unsupported("use a password"),
    "oauth_scope": _unsupported("use a password"),
    "target_session_attrs": _one_of("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": _one_of("disable", "random"),
}

#: The parameters for TLS that the driver reads from the environment if a URL leaves them out.
TLS_PARAMETERS = (
    "sslmode",
    "sslnegotiation",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
)
# The variable of a parameter, for example PGSSLCERT for sslcert.
_VARIABLES = {f"PG{name.replace('_', '').upper()}": name for name in ("port", *TLS_PARAMETERS)}
# The driver ignores them if they are empty.
_MAY_BE_EMPTY = {"host", "port", "dbname", "user", "password", "passfile", "application_name", "options"}


def check(name: str, value: str, place: str = "") -> None:
    """Check that the broker accepts a parameter. `place` names its place, if that is not the URL.

    Raises:
        ConnectionUrlError: The broker does not accept it.
    """
    if name not in KNOWN:
        raise ConnectionUrlError(
            f"cannot be used: {place}{shown(name)} is not a connection parameter of PostgreSQL (to change a"
            " setting of the server, write options=-c%20name=value)"
        )
    if not value and name in _MAY_BE_EMPTY:
        return
    # With several hosts, each may have a port or none.
    problem = None if name == "port" and "," in value else KNOWN[name](value)
    if problem is not None or not value:
        raise ConnectionUrlError(f"cannot be used: {place}{name} {problem or 'needs a value'}")


def check_variables(environment: Mapping[str, str]) -> None:
    """Check the PG* variables that the driver reads.

    Raises:
        ConnectionUrlError: The driver cannot use a variable. The message names it.
    """
    for variable, name in _VARIABLES.items():
        value = environment.get(variable)
        if value and (problem := KNOWN[name](value)):
            raise ConnectionUrlError(f"{variable} {problem}")


def shown(name: str) -> str:
    """Return a name if it looks like one. Other names may be a part of a password."""
    return name if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.]{0,40}", name) else "a parameter"
