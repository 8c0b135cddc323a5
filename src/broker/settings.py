"""The settings of the service, from environment variables that begin with BROKER_."""

import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Meta, Struct

from broker.postgres.connection_parameters import ConnectionUrlError, check_variables
from broker.postgres.connection_url import ConnectionUrl
from broker.schemas import limits

_CLIENT_VARIABLES = {"BROKER_URL", "BROKER_KEY"}
_SENDABLE = re.compile("[!-~]+")
_DATABASES = ("database_url", "listen_url", "read_url")


class SettingsError(Exception):
    """A setting with an invalid value."""


class Settings(Struct, frozen=True, kw_only=True):
    """The settings of the service, each with its default.

    Args:
        database_url: The URL of your own PostgreSQL: `postgresql://user:password@host/name`. If not set, the
            broker runs the embedded PostgreSQL. With several hosts, `host-a:5432,host-b:5432`, the broker
            uses the one that accepts writes. You can add parameters of libpq, for example
            `?sslmode=verify-full&connect_timeout=3`. The broker refuses parameters that it does not support,
            and names them.
        database_password_file: A file with the password of the database. The broker adds the password to URLs
            that have a user and no password.
        listen_url: The URL of PostgreSQL itself. Set it if BROKER_DATABASE_URL is the URL of a pooler in
            transaction mode, because such a pooler does not forward notifications. `broker migrate` and
            `broker keys` also use this URL.
        read_url: The URL of a standby. The broker reads lists of tasks and the archive from it, so they may
            be slightly out of date. While the standby does not respond, the broker reads from the primary.
        data_dir: The folder of the embedded PostgreSQL. If not set, root uses /var/lib/broker. Other users
            use $XDG_DATA_HOME/broker or, if XDG_DATA_HOME is not set, ~/.local/share/broker.
        admin_key: A key with the role admin that is not stored in the database. Use at least 20 random
            characters.
        admin_key_file: A file with the admin key. Set either this or BROKER_ADMIN_KEY.
        pool_size: The number of database connections for requests, per process.
        read_pool_size: The number of further database connections for lists, exports and dashboards, per
            process. If BROKER_READ_URL is set, the broker opens the same number to the standby. Events and
            statistics have one more connection each. Other requests do not use these connections.
        read_timeout_seconds: The maximum duration of a database statement for lists, exports and dashboards,
            in seconds. If a statement takes longer, the request gets 503. If
            BROKER_DATABASE_TIMEOUT_SECONDS is shorter, that limit applies.
        database_timeout_seconds: The maximum duration of a database statement, in seconds. If the statement
            takes longer, or the database does not respond for this long, the request gets 503.
        group_commit: Let requests that arrive at the same time share a transaction. `broker bench` compares
            this with one transaction per request.
        max_connections: The maximum number of client connections at a time. Further ones get 503. If the
            process may open fewer files than this number plus 200, the broker lowers the number.
        header_timeout_seconds: The maximum time for a client to send the headers of a request, in seconds. A
            slower request gets 408.
        body_timeout_seconds: The maximum time for a client to send a request body, in seconds. The broker
            adds a second for every 1,000 bytes that it has received. A slower request gets 408.
        send_timeout_seconds: How long a client may stop reading a response before the broker closes the
            connection, in seconds.
        max_body_bytes: The maximum size of a request body, in bytes. Larger requests get 413.
        max_body_bytes_in_all: The maximum total size, in bytes, of all request bodies without a response yet.
            A request that exceeds it gets 503.
        max_depth: The maximum nesting depth of a JSON value. The value itself counts as one level.
        max_match_bytes: The maximum size of `needs` and of `skills`, in bytes each.
        max_text_chars: The maximum length of a text (message, error or remark), in characters.
        max_waits_per_client: The maximum number of waiting requests (long polls and event streams) of one
            client at a time, per process. Further ones get 429. A client is a key with its tools or, while
            there are no keys, an address.
        max_waits: The maximum number of waiting requests (long polls and event streams) of all clients at a
            time, per process. Further ones get 503.
        fallback_seconds: If a waiting request gets no notification for this long, in seconds, the broker
            checks the database for it. The broker shortens this time at random, by up to half.
        probe_seconds: The interval at which the broker checks that notifications arrive, in seconds.
        archive_retention_days: The minimum number of days for which the archive keeps a record. The broker
            deletes all records of a month together, so it keeps some of them longer. The month is that of the
            assignment. If not set, the archive keeps all records permanently.
        log_level: The lowest level of messages that the broker logs: debug, info, warning or error.
        access_log: Log each request when the broker responds, with its id, status and duration.
        shutdown_seconds: The maximum time for writes in progress to finish when the broker stops, in seconds.
    """

    database_url: str | None = None
    database_password_file: Path | None = None
    listen_url: str | None = None
    read_url: str | None = None
    data_dir: Path | None = None
    admin_key: str | None = None
    admin_key_file: Path | None = None
    pool_size: Annotated[int, Meta(ge=1, le=100)] = 8
    read_pool_size: Annotated[int, Meta(ge=1, le=100)] = 2
    read_timeout_seconds: Annotated[float, Meta(ge=0.5, le=600)] = 10.0
    database_timeout_seconds: Annotated[float, Meta(ge=0.5, le=600)] = 15.0
    group_commit: bool = True
    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 16_000
    header_timeout_seconds: Annotated[float, Meta(ge=0.1, le=600)] = 10.0
    body_timeout_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 20.0
    send_timeout_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 30.0
    max_body_bytes: Annotated[int, Meta(ge=1024, le=256 * 2**20)] = limits.LARGEST_BODY_BYTES
    max_body_bytes_in_all: Annotated[int, Meta(ge=1024, le=2**40)] = 512 * 2**20
    max_depth: Annotated[int, Meta(ge=1, le=900)] = limits.DEEPEST_NESTING
    max_match_bytes: Annotated[int, Meta(ge=16)] = limits.LARGEST_MATCH_BYTES
    max_text_chars: Annotated[int, Meta(ge=16)] = limits.LONGEST_TEXT_CHARS
    max_waits_per_client: Annotated[int, Meta(ge=1)] = 12_000
    max_waits: Annotated[int, Meta(ge=1)] = 16_000
    fallback_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 30.0
    probe_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 10.0
    archive_retention_days: Annotated[int, Meta(ge=1, le=36_500)] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = False
    shutdown_seconds: Annotated[int, Meta(ge=0, le=60)] = 1

    def __post_init__(self) -> None:
        for name in _DATABASES:
            url = getattr(self, name)
            if url is None:
                continue
            try:
                ConnectionUrl.parse(url).user()
            except ConnectionUrlError as error:
                raise SettingsError(f"{variable_of(name)} {error}.") from None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **given: Any) -> "Settings":
        """Read the settings from the environment, and the password of the database from its file.

        Args:
            environment: The environment variables.
            given: Values that replace those of the environment, unless they are None.

        Returns:
            The settings, with the password in the URLs.

        Raises:
            SettingsError: A value is not valid. The message names the variable and says why.
        """
        types = get_type_hints(cls, include_extras=True)
        values: dict[str, Any] = {}
        for name in cls.__struct_fields__:
            variable = variable_of(name)
            if variable in environment:
                try:
                    values[name] = msgspec.convert(
                        environment[variable], types[name], strict=False, dec_hook=_path
                    )
                except (msgspec.ValidationError, RuntimeError, UnicodeEncodeError) as error:
                    raise SettingsError(f"{variable}={environment[variable]!r}: {error}") from None
        values.update((name, value) for name, value in given.items() if value is not None)
        settings = cls(**values)
        urls = {name: url for name in _DATABASES if (url := getattr(settings, name)) is not None}
        if urls:
            try:
                check_variables(environment)
            except ConnectionUrlError as error:
                raise SettingsError(f"{error}.") from None
        if settings.database_password_file is None:
            return settings
        password = _word_in(settings.database_password_file, variable_of("database_password_file"))
        return msgspec.structs.replace(
            settings, **{name: _with_password(url, password) for name, url in urls.items()}
        )

    @property
    def direct_url(self) -> str | None:
        """The URL of PostgreSQL itself, not of a pooler, for sessions and for one-time tasks."""
        return self.listen_url or self.database_url

    def load_admin_key(self) -> str | None:
        """Return the admin key of the settings or of its file, or None if neither is set.

        Raises:
            SettingsError: The key cannot be read, or cannot be sent in a header. The message does not show
            it.
        """
        key, variable = self.admin_key, variable_of("admin_key")
        if self.admin_key_file is not None:
            if key is not None:
                raise SettingsError("Set either BROKER_ADMIN_KEY or BROKER_ADMIN_KEY_FILE, not both.")
            variable = variable_of("admin_key_file")
            key = _word_in(self.admin_key_file, variable)
        if key is not None and not _SENDABLE.fullmatch(key):
            raise SettingsError(
                f"{variable} must be a key of ASCII letters, digits and punctuation, without spaces."
            )
        return key


def _word_in(file: Path, variable: str) -> str:
    """Return the text of a file without the surrounding whitespace.

    Raises:
        SettingsError: The file cannot be read.
    """
    try:
        return file.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{variable}={str(file)!r}: {error}") from None


def _with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    if not user or ":" in user:
        return url
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}{at}{hosts}").geturl()


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"BROKER_{name.upper()}"


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of variables that begin with BROKER_ and are not settings."""
    known = {variable_of(name) for name in Settings.__struct_fields__} | _CLIENT_VARIABLES
    return sorted(name for name in environment if name.startswith("BROKER_") and name not in known)


def meanings() -> dict[str, str]:
    """Return the meaning of each setting, by its name, from the docstring of `Settings`."""
    documented = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", Settings.__doc__ or "", re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in documented}


def describe() -> str:
    """Return the variable, the default and the meaning of every setting, for `--help`."""
    defaults = Settings()
    lines = []
    for name, meaning in meanings().items():
        lines.append(f"  {variable_of(name)}  [default: {_shown(getattr(defaults, name))}]")
        lines.append(textwrap.indent(textwrap.fill(meaning, 74, break_on_hyphens=False), " " * 6))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """Return a value as a user writes it into a variable."""
    if value is None:
        return "not set"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _path(wanted: type, value: Any) -> Any:
    if wanted is Path:
        return Path(value).expanduser()
    raise NotImplementedError(wanted)
