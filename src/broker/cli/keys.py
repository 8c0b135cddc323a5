"""`broker keys`: who may do what."""

import re
import secrets

import click

from broker import logs
from broker.cli.database import Answer, Given, ask, described, from_environment, reached, see_that_it_is_made
from broker.embedded import EmbeddedError
from broker.errors import Unavailable
from broker.schemas import ID_PATTERN
from broker.security import KEY_PREFIX, ROLES, hashed, new_key
from broker.settings import Settings
from broker.store import keys as store
from broker.store.engine import Do

_NAME = re.compile(ID_PATTERN)

_ROLES = """
\b
The roles:
  submitter  submits tasks; reads, retries and deletes those that its key submitted
  tool       registers tools, and does the work of those that its key registered
  assigner   sees what waits, pairs tasks with tools, makes remarks
  operator   reads everything; cancels, retries, drains, deletes, accepts
  admin      everything

A key is shown once, when it is made; the database has only its hash. Programs read it from BROKER_KEY; with
curl it is -H "Authorization: Bearer $BROKER_KEY". What a key has submitted and registered belongs to its
name: when that is given to a new key, so is what belongs to it.
"""


@click.group(epilog=_ROLES)
def keys() -> None:
    """Make, list and revoke keys.

    They are in the database of BROKER_DATABASE_URL, or in the embedded one in BROKER_DATA_DIR: set them as
    the service has them, whether it runs or not. A running service knows of a change within two seconds. As
    soon as there is a key, every call needs one.
    """


@keys.command(epilog=_ROLES)
@click.option(
    "--role", "roles", multiple=True, required=True, type=click.Choice(ROLES), help="May be given repeatedly."
)
@click.option("--name", help="What the key is called in lists.  [default: its roles and some letters]")
@click.option("--replace", is_flag=True, help="Revoke the key that has the name in the same moment.")
def create(roles: tuple[str, ...], name: str | None, replace: bool) -> None:
    """Make a key; it is the last line of the output, and is shown this once."""
    roles = tuple(dict.fromkeys(roles))
    name = name if name is not None else "-".join((*roles, secrets.token_hex(2)))
    if not _NAME.match(name):
        raise click.UsageError(
            "A name has 1 to 128 characters of A-Z a-z 0-9 . _ ~ : - and begins with a letter or a digit."
        )
    key = new_key()
    settings = from_environment()
    if not _in_database(settings, store.create, name, roles, hashed(key), replace=replace):
        raise click.ClickException(
            f"There is a key {name!r} already: choose another name, or --replace it by the new one."
        )
    where = described(settings)
    click.echo(f"Key {name} ({', '.join(roles)}) is made in {where}. It is shown this once:", err=True)
    click.echo(key)


@keys.command("list")
def list_() -> None:
    """List the keys: their names, their roles, and since and until when they are good."""
    settings = from_environment()
    see_that_it_is_made(settings)
    found = _in_database(settings, store.all_of_them)
    if not found:
        click.echo(
            f"There are no keys in {described(settings)}: unless its service has one from BROKER_ADMIN_KEY,"
            " everybody on its machine may do everything.",
            err=True,
        )
        return
    table = [("NAME", "ROLES", "CREATED", "REVOKED")]
    table += [
        (
            key.name,
            ",".join(key.roles),
            f"{key.created_at:%Y-%m-%d %H:%M}",
            f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "",
        )
        for key in found
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Revoke a key: within two seconds it is good for nothing, nor are the tokens of the tools it registered.

    What it has submitted and registered stays; its tools go offline, and what they had begun goes back. To
    change a key for another, so that its tools go on, use `broker keys create --replace`.
    """
    if name.startswith(KEY_PREFIX):
        raise click.UsageError("That is a key; give its name, as `broker keys list` shows it.")
    settings = from_environment()
    see_that_it_is_made(settings)
    if not _in_database(settings, store.revoke, name):
        raise click.ClickException(
            f"There is no key {name!r} in use; `broker keys list` shows those there are."
        )
    click.echo(f"Key {name} is revoked.", err=True)


def _in_database(
    settings: Settings, do: Do[Given, Answer], *args: Given.args, **kwargs: Given.kwargs
) -> Answer:
    """Do something in a transaction of its own.

    Raises:
        click.ClickException: The database cannot be reached, or has another schema.
    """
    try:
        logs.configure("warning")
        with reached(settings) as url:
            return ask(url, do, *args, **kwargs)
    except EmbeddedError as error:
        raise click.ClickException(str(error)) from error
    except Unavailable as error:
        raise click.ClickException(f"The database does not answer: {error.__cause__}") from error
