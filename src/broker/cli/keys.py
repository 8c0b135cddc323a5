"""`broker keys`: create, list and revoke keys."""

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from broker.cli.output import align_columns
from broker.cli.stop_signals import run_async
from broker.cli.url_option import clear_request_errors
from broker.client.addresses import in_path, url_of_broker
from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.schemas import keys as schemas
from broker.schemas.keys import KEY_PREFIX, ROLES, CreatedKey, KeyPage, NewKey, Role
from broker.schemas.values import ID_PATTERN

if TYPE_CHECKING:
    from broker.cli.database_keys import DatabaseKeys

Response = TypeVar("Response")
Row = tuple[str, ...]

_NAME = re.compile(ID_PATTERN)

_LINES = "\n".join(f"  {role:<9}  {text}" for role, text in ROLES.items())
_ROLES = f"""
\b
Roles:
{_LINES}

The command shows a key only once, when it creates the key. The database stores only the hash of the key.
Programs read the key from BROKER_KEY. For curl, add -H "Authorization: Bearer $BROKER_KEY". Tasks and tools
belong to the name of the key that submitted or registered them. If you replace the key of a name, they belong
to the new key.

\b
Examples:
  broker keys create --role admin --name me
  broker keys create --role submitter --role tool --name xrd
  broker keys list
  broker keys revoke xrd
"""

_PATIENCE_SECONDS = 5.0

_url = click.option(
    "--url",
    envvar="BROKER_URL",
    show_envvar=True,
    help="The URL of a running broker. If the broker has keys, set BROKER_KEY to a key with the role admin."
    "  [default: use the database]",
)


@click.group(epilog=_ROLES)
def keys() -> None:
    """Create, list and revoke keys.

    With --url or BROKER_URL, the command uses a running broker. Otherwise it uses the database of
    BROKER_DATABASE_URL, or the embedded PostgreSQL in BROKER_DATA_DIR. Set them as for the service. The
    service may run at the same time, and applies changes within two seconds. As soon as a key exists, every
    request needs a key.
    """


@keys.command(epilog=_ROLES)
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice(list(ROLES)),
    help="A role of the key. Repeat the option for several roles.",
)
@click.option("--name", help="The name of the key.  [default: its roles and four random characters]")
@click.option("--replace", is_flag=True, help="If a key has this name, revoke it at the same time.")
@_url
def create(roles: tuple[Role, ...], name: str | None, replace: bool, url: str | None) -> None:
    """Create a key, and print it as the last line of the output.

    The command cannot show the key again.
    """
    roles = tuple(dict.fromkeys(roles))
    name = name if name is not None else "-".join((*roles, secrets.token_hex(2)))
    if not _NAME.match(name):
        raise click.UsageError(
            "A name must have 1 to 128 characters of A-Z a-z 0-9 . _ ~ : - and begin with a letter or a"
            " digit."
        )
    target = _keys_at(url)
    if (created := target.create(name, roles, replace=replace)) is None:
        raise click.ClickException(f"Key {name!r} already exists. Choose another --name, or use --replace.")
    key, is_first = created
    if is_first and "admin" not in roles:
        click.echo(
            "Warning: this is the first key. From now on every request needs a key, and this key cannot"
            " create other keys. If the service has no BROKER_ADMIN_KEY, create a key with the role admin"
            " directly in the database. For that, omit --url, and unset BROKER_URL.",
            err=True,
        )
    click.echo(f"Created key {name} ({', '.join(roles)}) {target.where}. It is shown only once:", err=True)
    click.echo(key)


@keys.command("list", epilog="\b\nExample:\n  broker keys list")
@_url
def list_(url: str | None) -> None:
    """List the keys with their roles and times.

    The times are those of creation, last use and revocation. With --url, the list has only keys that are not
    revoked. Without --url, it has all keys.
    """
    target = _keys_at(url)
    table = target.rows()
    if len(table) == 1:
        click.echo(
            f"There are no keys {target.where}. If the service has no BROKER_ADMIN_KEY, every program on its"
            " machine has full access.",
            err=True,
        )
        return
    for line in align_columns(table):
        click.echo(line)


@keys.command(epilog="\b\nExample:\n  broker keys revoke xrd")
@click.argument("name")
@_url
def revoke(name: str, url: str | None) -> None:
    """Revoke a key.

    The key and the tokens of the tools that it registered stop working within two seconds. Its tasks and
    tools stay. Its tools go offline when their leases expire, and their tasks become available to other
    tools. To replace a key while its tools continue, use `broker keys create --replace`.
    """
    if name.startswith(KEY_PREFIX):
        raise click.UsageError("This is a key. Use its name, as `broker keys list` shows it.")
    if not _keys_at(url).revoke(name):
        raise click.ClickException(
            f"No key has the name {name!r}, or it is already revoked. `broker keys list` shows all keys."
        )
    click.echo(f"Revoked key {name}.", err=True)


def key_row(name: str, roles: Sequence[str], *times: datetime | None) -> Row:
    """Return the table cells of a key: its name, its roles, and its times to the minute."""
    return (name, ",".join(roles), *(f"{time:%Y-%m-%d %H:%M}" if time else "" for time in times))


def _keys_at(url: str | None) -> "_BrokerKeys | DatabaseKeys":
    if url is not None:
        return _BrokerKeys(url)
    from broker.cli.database_keys import DatabaseKeys  # noqa: PLC0415 - slow to import

    return DatabaseKeys()


class _BrokerKeys:
    """The keys of a running broker, over HTTP."""

    def __init__(self, url: str) -> None:
        self._url = url_of_broker(url)
        self.where = f"at {self._url}"

    def create(self, name: str, roles: Sequence[Role], *, replace: bool) -> tuple[str, bool] | None:
        new = NewKey(name=name, roles=list(roles), replace=replace)
        with self._refused("key_exists"):
            is_first = next(self._all(), None) is None
            return self._request("POST", "/v1/keys", CreatedKey, json=new).key, is_first
        return None

    def rows(self) -> list[Row]:
        with self._refused():
            items = list(self._all())
        return [
            ("NAME", "ROLES", "CREATED", "LAST USED"),
            *(key_row(key.name, key.roles, key.created_at, key.last_used_at) for key in items),
        ]

    def revoke(self, name: str) -> bool:
        with self._refused("key_not_found"):
            self._request("DELETE", f"/v1/keys/{in_path(name)}", NoneType)
            return True
        return False

    def _all(self) -> Iterator[schemas.Key]:
        page = self._request("GET", "/v1/keys", KeyPage)
        yield from page.items
        while page.next is not None:
            page = self._request("GET", "/v1/keys", KeyPage, query={"after": page.next})
            yield from page.items

    def _request(self, method: str, path: str, response: type[Response], **options: Any) -> Response:
        async def send() -> Response:
            async with Connection(self._url, patience_seconds=_PATIENCE_SECONDS) as connection:
                return await connection.call(method, path, response, **options)

        return run_async(send)

    @contextmanager
    def _refused(self, expected: str | None = None) -> Iterator[None]:
        """End the command with an error message on a refusal. An expected code ends the block only."""
        with clear_request_errors(self._url):
            try:
                yield
            except ProblemError as error:
                if error.code in ("unauthenticated", "forbidden"):
                    raise click.ClickException(
                        f"{error.problem.detail} Set BROKER_KEY to a key with the role admin, or unset"
                        " BROKER_URL to use the database directly."
                    ) from error
                if error.code != expected:
                    raise
