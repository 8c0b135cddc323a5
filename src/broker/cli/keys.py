"""`broker keys`: make, list and revoke keys."""

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from broker.cli.output import aligned
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
The roles:
{_LINES}

A key is shown once, when it is made; the database has only its hash. Programs read it from BROKER_KEY; with
curl it is -H "Authorization: Bearer $BROKER_KEY". What a key has submitted and registered belongs to its
name: when that is given to a new key, so is what belongs to it.
"""

_PATIENCE_SECONDS = 5.0

_url = click.option(
    "--url",
    envvar="BROKER_URL",
    show_envvar=True,
    help="URL of a running broker; once there are keys, set BROKER_KEY to the key of an admin."
    "  [default: use the database]",
)


@click.group(epilog=_ROLES)
def keys() -> None:
    """Make, list and revoke keys.

    With --url or BROKER_URL, the command asks a running broker. Otherwise it uses the database of
    BROKER_DATABASE_URL, or the embedded one in BROKER_DATA_DIR: set them as the service has them, whether it
    runs or not. A running service knows of a change within two seconds. As soon as there is a key, every
    request needs one.
    """


@keys.command(epilog=_ROLES)
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice(list(ROLES)),
    help="May be given repeatedly.",
)
@click.option("--name", help="What the key is called in lists.  [default: its roles and some letters]")
@click.option("--replace", is_flag=True, help="Revoke the key that has the name in the same moment.")
@_url
def create(roles: tuple[Role, ...], name: str | None, replace: bool, url: str | None) -> None:
    """Make a key; it is the last line of the output, and is shown this once."""
    roles = tuple(dict.fromkeys(roles))
    name = name if name is not None else "-".join((*roles, secrets.token_hex(2)))
    if not _NAME.match(name):
        raise click.UsageError(
            "A name has 1 to 128 characters of A-Z a-z 0-9 . _ ~ : - and begins with a letter or a digit."
        )
    target = _keys_at(url)
    if (made := target.create(name, roles, replace=replace)) is None:
        raise click.ClickException(
            f"There is a key {name!r} already: choose another name, or --replace it by the new one."
        )
    key, is_first = made
    if is_first and "admin" not in roles:
        click.echo(
            "Warning: this is the first key. From now on every request needs one, and this one makes no"
            " other. Unless the service has a key from BROKER_ADMIN_KEY, make a second one, with the role"
            " admin, in the database, without --url and BROKER_URL.",
            err=True,
        )
    click.echo(f"Key {name} ({', '.join(roles)}) is made {target.where}. It is shown this once:", err=True)
    click.echo(key)


@keys.command("list")
@_url
def list_(url: str | None) -> None:
    """List the keys: their names and roles, and when they were made, last used and revoked.

    A broker lists the keys in use; the database has the revoked ones, too.
    """
    target = _keys_at(url)
    table = target.rows()
    if len(table) == 1:
        click.echo(
            f"There are no keys {target.where}: unless its service has one from BROKER_ADMIN_KEY,"
            " everybody on its machine may do everything.",
            err=True,
        )
        return
    for line in aligned(table):
        click.echo(line)


@keys.command()
@click.argument("name")
@_url
def revoke(name: str, url: str | None) -> None:
    """Revoke a key: within two seconds it is good for nothing, nor are the tokens of the tools it registered.

    What it has submitted and registered stays; its tools go offline, and what they had begun goes back. To
    change a key for another, so that its tools go on, use `broker keys create --replace`.
    """
    if name.startswith(KEY_PREFIX):
        raise click.UsageError("That is a key; give its name, as `broker keys list` shows it.")
    if not _keys_at(url).revoke(name):
        raise click.ClickException(
            f"There is no key {name!r} in use; `broker keys list` shows those there are."
        )
    click.echo(f"Key {name} is revoked.", err=True)


def key_row(name: str, roles: Sequence[str], *times: datetime | None) -> Row:
    """Return the cells of a key: its name, its roles, and its times to the minute."""
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
        """End the command with a clear message if the broker refuses; the expected code ends the block."""
        with clear_request_errors(self._url):
            try:
                yield
            except ProblemError as error:
                if error.code in ("unauthenticated", "forbidden"):
                    raise click.ClickException(
                        f"{error.problem.detail} Set BROKER_KEY to a key with the role admin, or unset"
                        " BROKER_URL to use the database itself."
                    ) from error
                if error.code != expected:
                    raise
