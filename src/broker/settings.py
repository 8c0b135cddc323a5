"""What can be set, from environment variables that begin with BROKER_."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Meta, Struct

from broker.postgres.connection_parameters import ConnectionUrlError, check_variables
from broker.postgres.connection_url import ConnectionUrl
from broker.schemas.limits import LARGEST_BODY_BYTES, LONGEST_TEXT_CHARS

_OF_CLIENTS = {"BROKER_URL", "BROKER_KEY"}
_SENDABLE = re.compile("[!-~]+")
_DATABASES = ("database_url", "listen_url", "read_url")


class SettingsError(Exception):
    """A setting has a value that cannot be used."""


class Settings(Struct, frozen=True, kw_only=True):
    """The settings of the service, each with its default.

    Args:
        database_url: `postgresql://user:password@host/name`; none: the embedded Postgres. Several hosts,
            `host-a:5432,host-b:5432`: the one that takes writes is used, whichever that is. Parameters are
            those of libpq, `?sslmode=verify-full&connect_timeout=3`; the broker refuses those it does not
            support, and names them.
        database_password_file: The file that has the password, for URLs that have a user and no password.
        listen_url: The database itself, where `database_url` is that of a pooler in transaction mode, over
            which no notification is heard. `broker migrate` and `broker keys` use it, too.
        read_url: A copy of the database, a hot standby, from which tasks and the archive are listed; what is
            listed may be some moments old then. While it does not answer, the database itself is read.
        data_dir: Where the embedded Postgres keeps its data; else /var/lib/broker for root, and for others
            broker under XDG_DATA_HOME or ~/.local/share.
        admin_key: A key with the role admin that is there from the start; at least 20 characters of chance.
        admin_key_file: Or: the file that has it.
        pool_size: Database connections for requests, in one process.
        read_pool_size: Further database connections in one process, for lists, exports and dashboards, and
            as many to read_url; events and statistics have one more each. Nothing else uses them.
        read_timeout_seconds: How long a statement for lists, exports and dashboards may take, at most
            database_timeout_seconds; then 503.
        database_timeout_seconds: How long a statement may take, or the database be silent; then 503.
        group_commit: Whether requests that come at the same time share a transaction; else each has one of
            its own, which `broker bench` compares with.
        max_connections: The most connections of clients at once; one more is told 503. As many as the process
            may have files open, less 200, where that is fewer.
        header_timeout_seconds: How long a client may take until all headers of a request have come; then 408.
        body_timeout_seconds: How long a request body may take, and a second longer for every 1,000 bytes that
            have come; then 408.
        send_timeout_seconds: How long a client may read nothing of its answer; then it is cut off.
        max_body_bytes: The largest request body.
        max_body_bytes_in_all: The most bytes of request bodies that are not answered yet, of all clients; the
            request that goes beyond is told 503.
        max_depth: How deep a JSON value may nest; the value itself counts.
        max_match_bytes: The largest `needs` or `skills`, each.
        max_text_chars: The longest text (message, error, remark).
        max_waits_per_client: How many requests of one client may wait at once, that is of one key, its tools
            included, or, while there are no keys, of one address; one more is answered 429.
        max_waits: How many of all clients, in one process; one more is answered 503.
        fallback_seconds: How often, at least, it is made sure that no parked request missed its hint;
            jitter takes up to half of it off.
        probe_seconds: How often it is made sure that notifications are heard.
        archive_retention_days: How long the archive keeps a record at least; it goes with the month in which
            its work was assigned. Not set: for ever.
        log_level: The least that is logged: debug, info, warning or error.
        access_log: Whether each request is logged when it is answered, with its id, its status and its time.
        shutdown_seconds: How long the server gives writes under way when it is told to stop.
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
    max_body_bytes: Annotated[int, Meta(ge=1024, le=256 * 2**20)] = LARGEST_BODY_BYTES
    max_body_bytes_in_all: Annotated[int, Meta(ge=1024, le=2**40)] = 512 * 2**20
    max_depth: Annotated[int, Meta(ge=1, le=900)] = 200
    max_match_bytes: Annotated[int, Meta(ge=16)] = 64 * 2**10
    max_text_chars: Annotated[int, Meta(ge=16)] = LONGEST_TEXT_CHARS
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
        """The settings that the environment gives, and over them those in `given` that are not None.

        The password of the database's file is in the URLs then.

        Raises:
            SettingsError: A value cannot be used; the message names the variable and says why.
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
        if any(getattr(settings, name) is not None for name in _DATABASES):
            try:
                check_variables(environment)
            except ConnectionUrlError as error:
                raise SettingsError(f"{error}.") from None
        if settings.database_password_file is None:
            return settings
        password = _word_in(settings.database_password_file, variable_of("database_password_file"))
        urls = {name: getattr(settings, name) for name in _DATABASES}
        return msgspec.structs.replace(
            settings, **{name: _with_password(url, password) for name, url in urls.items() if url is not None}
        )

    @property
    def direct_url(self) -> str | None:
        """The database itself, past a pooler: for what needs a session, and for what is done once."""
        return self.listen_url or self.database_url

    def the_admin_key(self) -> str | None:
        """The admin key that is there from the start, from wherever it is; none: there is none.

        Raises:
            SettingsError: It cannot be read, or cannot be sent in a header; its value is not told.
        """
        key, variable = self.admin_key, variable_of("admin_key")
        if self.admin_key_file is not None:
            if key is not None:
                raise SettingsError("Set BROKER_ADMIN_KEY or BROKER_ADMIN_KEY_FILE, not both.")
            variable = variable_of("admin_key_file")
            key = _word_in(self.admin_key_file, variable)
        if key is not None and not _SENDABLE.fullmatch(key):
            raise SettingsError(f"{variable} has no key: letters, digits and signs of ASCII, without spaces.")
        return key


def _word_in(file: Path, variable: str) -> str:
    """What a file has, without the line's end.

    Raises:
        SettingsError: It cannot be read.
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
    """The environment variable of a setting."""
    return f"BROKER_{name.upper()}"


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Those that begin like a setting and are none."""
    known = {variable_of(name) for name in Settings.__struct_fields__} | _OF_CLIENTS
    return sorted(name for name in environment if name.startswith("BROKER_") and name not in known)


def describe() -> str:
    """Every setting with its variable, its meaning and its default, for `--help`."""
    documented = re.findall(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", Settings.__doc__ or "", re.MULTILINE)
    defaults = Settings()
    lines = []
    for name, meaning in documented:
        default = getattr(defaults, name)
        lines.append(f"  {variable_of(name)}  [{'not set' if default is None else default}]")
        lines.append(f"      {' '.join(meaning.split())}")
    return "\n".join(lines)


def _path(wanted: type, value: Any) -> Any:
    if wanted is Path:
        return Path(value).expanduser()
    raise NotImplementedError(wanted)
