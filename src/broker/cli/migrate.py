"""`broker migrate`: the schema of a database of one's own."""

import asyncio

import click
from alembic.util import CommandError

from broker.cli.database import ask, clear_errors, from_environment
from broker.store import schema


@click.command()
@click.option("--to", "revision", default="head", show_default=True, help="The revision to go to.")
def migrate(revision: str) -> None:
    """Bring the schema of BROKER_DATABASE_URL up to date.

    The embedded PostgreSQL needs no such call: `broker serve` sees to it.
    """
    url = from_environment().direct_url
    if url is None:
        raise click.ClickException("Set BROKER_DATABASE_URL=postgresql://user:password@host/name first.")
    with clear_errors():
        try:
            asyncio.run(schema.migrate(url, revision))
        except OSError as error:
            raise click.ClickException(f"The database does not answer: {error}") from error
        except CommandError as error:
            raise click.ClickException(f"There is no such revision: {error}") from error
        here = ask(url, schema.current)
    click.echo(f"The schema is at version {here}." if here else "The schema is gone.")
