"""`broker migrate`: migrate the schema of a database of one's own."""

import click

from broker.cli.database import clear_database_errors, run_in_transaction, settings_from_environment
from broker.cli.stop_signals import run_async
from broker.store import migration, schema_version


@click.command()
def migrate() -> None:
    """Bring the schema of BROKER_DATABASE_URL up to date.

    The embedded PostgreSQL needs no such call: `broker serve` sees to it.
    """
    url = settings_from_environment().direct_url
    if url is None:
        raise click.ClickException("Set BROKER_DATABASE_URL=postgresql://user:password@host/name first.")
    with clear_database_errors():
        try:
            run_async(migration.migrate, url)
        except OSError as error:
            raise click.ClickException(f"The database does not answer: {error}") from error
        version = run_in_transaction(url, schema_version.current_version)
    click.echo(f"The schema is at version {version}.")
